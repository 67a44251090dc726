"""Seconds by step, and functions and networks whose seconds are counted as they are called."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn


class Stopwatch:
    """Adds up seconds under names; a step inside another is taken out of the outer one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop(name)

    def start(self) -> None:
        self._inner += [0.0, time.perf_counter()]

    def stop(self, name: str) -> None:
        started, inner = self._inner.pop(), self._inner.pop()
        whole = time.perf_counter() - started
        self.seconds[name] += whole - inner
        if self._inner:
            self._inner[-2] += whole

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
