"""CPU seconds by step, and functions and networks whose seconds are counted as they are called."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn


class Stopwatch:
    """Adds up CPU seconds of the calling thread; a step inside another leaves the outer one.

    Not the clock on the wall: a benchmark shares its machine with other work.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._thread = threading.local()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop(name)

    def start(self) -> None:
        self._open.append([time.thread_time(), 0.0])

    def stop(self, name: str) -> None:
        started, inner = self._open.pop()
        whole = time.thread_time() - started
        self.seconds[name] += whole - inner
        if self._open:
            self._open[-1][1] += whole

    @property
    def _open(self) -> list[list[float]]:
        if not hasattr(self._thread, "steps"):
            self._thread.steps = []
        return self._thread.steps

    def follow(self, network: nn.Module, name: str) -> None:
        """Count every forward pass of the network."""
        network.register_forward_pre_hook(lambda *_: self.start())
        network.register_forward_hook(lambda *_: self.stop(name))

    @contextmanager
    def wrapped(self, module: ModuleType, function: str, name: str) -> Iterator[None]:
        """Count every call of a module's function."""
        original = getattr(module, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return original(*args, **kwargs)

        setattr(module, function, timed)
        try:
            yield
        finally:
            setattr(module, function, original)
