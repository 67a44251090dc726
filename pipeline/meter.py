"""Timing of steps inside a process: cheap, nested, and each second counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Spent:
    """What a step took: wall and processor seconds, for so many images and bytes. It adds."""

    images: int = 0
    size_bytes: int = 0
    busy_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.images + other.images,
            self.size_bytes + other.size_bytes,
            self.busy_s + other.busy_s,
            self.cpu_s + other.cpu_s,
        )


@dataclass
class Section:
    """A step under way; whoever is in it counts images and bytes."""

    step: str
    images: int = 0
    size_bytes: int = 0
    spent: dict[str, Spent] = field(default_factory=dict)  # by step, once the section is over
    _inside: Spent = field(default_factory=Spent)

    def count(self, images: int, size_bytes: int) -> None:
        """Count what came out of the step."""
        self.images += images
        self.size_bytes += size_bytes

    def _close(self, busy_s: float, cpu_s: float) -> None:
        own = Spent(
            self.images, self.size_bytes, busy_s - self._inside.busy_s, cpu_s - self._inside.cpu_s
        )
        add_to(self.spent, {self.step: own})

    def _take(self, inner: Section, busy_s: float, cpu_s: float) -> None:
        self._inside += Spent(busy_s=busy_s, cpu_s=cpu_s)
        add_to(self.spent, inner.spent)


_open: ContextVar[Section | None] = ContextVar("section", default=None)


@contextmanager
def timed(step: str, *, in_child: bool = False) -> Iterator[Section]:
    """Time a step; what steps inside it take is theirs and not its own.

    `in_child`: another process computes meanwhile, on one core, and its time is not seen from here.
    """
    outer, section = _open.get(), Section(step)
    token = _open.set(section)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield section
    finally:
        _open.reset(token)
        busy_s, own_cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        cpu_s = max(busy_s, own_cpu_s) if in_child else own_cpu_s
        section._close(busy_s, cpu_s)
        if outer is not None:
            # The child's time was never in the outer one's own.
            outer._take(section, busy_s, own_cpu_s)


def add_to(total: dict[_Key, Spent], more: Mapping[_Key, Spent]) -> None:
    """Add what steps took to a total, in place."""
    for step, spent in more.items():
        total[step] = total.get(step, Spent()) + spent
