"""Where a model runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def pick_device() -> str:
    """Return "cuda" where this process was given a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a copy of host memory on a device.

    To a GPU from pinned memory, so that it is copied while the GPU does what it was told before.
    """
    if torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def num_gpus() -> int:
    """Return how many GPUs this process sees."""
    return torch.cuda.device_count()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute in so many threads, as in an actor that has so many CPUs."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
