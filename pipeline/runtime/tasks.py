"""Single functions on the cluster: one, one per item, or a stream of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import ray

from pipeline.machines import ANY_MACHINE, Device
from pipeline.runtime.errors import cause

_LOCAL_THREADS: Final = 4
_TASKS_PER_CPU: Final = 2  # of those handed out one by one: at work, and next

T = TypeVar("T")
R = TypeVar("R")


def run_task(work: Callable[..., T], *arguments: Any, device: Device = ANY_MACHINE) -> T:
    """Run one function on the cluster and return its result."""
    remote = ray.remote(**device.options)(work)
    try:
        result: T = ray.get(remote.remote(*arguments))
    except ray.exceptions.RayError as error:
        raise cause(error) from None
    return result


def map_tasks(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply `work` to every item: as tasks of the cluster, or in threads where there is none."""
    if not ray.is_initialized():
        with ThreadPoolExecutor(_LOCAL_THREADS) as pool:
            return list(pool.map(work, items))
    remote = ray.remote(_apply)
    try:
        results: list[R] = ray.get([remote.remote(work, item) for item in items])
    except ray.exceptions.RayError as error:
        raise cause(error) from None
    return results


def stream_tasks(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield `work` of every item as tasks finish, in any order; few are handed out at a time."""
    remote, shared = ray.remote(_apply), ray.put(work)
    limit = _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    try:
        for item in items:
            waiting.append(remote.remote(shared, item))
            if len(waiting) >= limit:
                finished, waiting = ray.wait(waiting)
                yield from ray.get(finished)
        while waiting:
            finished, waiting = ray.wait(waiting)
            yield from ray.get(finished)
    except ray.exceptions.RayError as error:
        raise cause(error) from None


def _apply(work: Callable[[T], R], item: T) -> R:
    return work(item)  # Ray takes functions only, not what else can be called
