"""Where a model runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

PRECISIONS: Final[Mapping[str, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@cache
def pick_device() -> str:
    """Return "cuda" where this process was given a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_quickly(precision: str) -> bool:
    """Say whether this process's device has units for a key of PRECISIONS.

    Without them a CPU takes several times as long as in fp32. True where torch does not know.
    """
    if precision == "fp32" or pick_device() != "cpu":
        return True
    # Such as "avx512_bf16", "amx_bf16", "amx_fp16"; not in every torch of our range.
    units: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    known = [has for name, has in units.items() if name.endswith(precision)]
    return not known or any(known)


def send(values: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """Return a copy of an array on a device.

    To a GPU from pinned memory, so that it is copied while the GPU does what it was told before.
    """
    if torch.device(device).type != "cuda":
        return torch.from_numpy(values.copy()).to(device)
    dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
    pinned = torch.empty(values.shape, dtype=dtype, pin_memory=True)
    pinned.numpy()[...] = values
    return pinned.to(device, non_blocking=True)


def fetch(values: torch.Tensor) -> NDArray[Any]:
    """Return values in the memory of the host.

    From a GPU in pinned memory, which torch keeps for the next: into memory that is new to the
    process, megabytes take several times as long.
    """
    if not values.is_cuda:
        return values.numpy()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values)
    return pinned.numpy()


@cache
def per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a model's mean or deviation of the channels (3, 1, 1); it is sent to a device once."""
    with torch.inference_mode(False):  # it is kept beyond the caller's mode
        return torch.tensor(values, device=device)[:, None, None]


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
