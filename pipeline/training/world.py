"""The workers of one training, as seen by one of them; alone where there are no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.errors import ModelError

T = TypeVar("T")


def size() -> int:
    """Return how many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def total(values: Tensor) -> Tensor:
    """Return the sum over all workers, which must all call this, in the shape of `values`."""
    summed = values.detach().clone()
    if size() > 1:
        dist.all_reduce(summed)
    return summed


def gathered(value: list[T]) -> list[T]:
    """Return the lists of all workers, one after the other."""
    if size() == 1:
        return value
    parts: list[list[T]] = [[] for _ in range(size())]
    dist.all_gather_object(parts, value)
    return [item for part in parts for item in part]


def together(load: Callable[[], T]) -> T:
    """Return what `load` returns, once it does in all workers, which must all call this.

    Raises ModelError in all of them where a model cannot be loaded in one: a file may be missing on
    its machine alone, and the others would wait for it.
    """
    problems = []
    try:
        loaded = load()
    except ModelError as error:
        problems.append(str(error))
    told = gathered(problems)
    if told:
        raise ModelError("; ".join(dict.fromkeys(told)))
    return loaded


def wait() -> None:
    """Return once all workers have come here."""
    if size() > 1:
        total(torch.zeros(1, device="cuda" if dist.get_backend() == "nccl" else "cpu"))
