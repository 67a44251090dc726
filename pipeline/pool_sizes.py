"""How many workers each pool gets of what a cluster has, from measured service times."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Pool:
    """What one worker of a pool takes: seconds per image, CPUs and GPUs."""

    service_s: float
    cpus: float = 1.0
    gpus: float = 0.0
    most: int | None = None  # workers that machines of its kind have room for
    fixed: int | None = None  # workers, where that is no longer to be chosen


@dataclass(frozen=True)
class Offer:
    """What there is in all, for pools and for the tasks that share the CPUs left over."""

    cpus: float
    gpus: float
    is_one_machine: bool = False


def pool_sizes(pools: Mapping[str, Pool], tasks_s: float, offer: Offer) -> dict[str, int]:
    """Return the sizes with the most images per second; each pool has at least one worker.

    `tasks_s` are the CPU seconds per image of fetching, decoding and writing, which go on beside.
    The slowest pool gets one more worker until there is no room for it or the tasks were slower:
    no other sizes have a faster slowest pool.
    """
    sizes = {name: pool.fixed or 1 for name, pool in pools.items()}
    while True:
        slowest = min(pools, key=lambda name: _rate(sizes[name], pools[name].service_s))
        rate = _rate(sizes[slowest], pools[slowest].service_s)
        more = {**sizes, slowest: sizes[slowest] + 1}
        if pools[slowest].fixed is not None or not _fits(more, pools, offer):
            return sizes
        if rate == inf or _rate(_cpus_left(more, pools, offer), tasks_s) < rate:
            return sizes
        sizes = more


def _rate(workers: float, service_s: float) -> float:
    return workers / service_s if service_s > 0 else inf


def _cpus_left(sizes: Mapping[str, int], pools: Mapping[str, Pool], offer: Offer) -> float:
    return offer.cpus - sum(size * pools[name].cpus for name, size in sizes.items())


def _fits(sizes: Mapping[str, int], pools: Mapping[str, Pool], offer: Offer) -> bool:
    gpus = sum(size * pools[name].gpus for name, size in sizes.items())
    # One CPU stays for the tasks, or nothing would ever arrive.
    room = gpus <= offer.gpus and _cpus_left(sizes, pools, offer) >= 1
    return room and all(
        pools[name].most is None or size <= (pools[name].most or 0) for name, size in sizes.items()
    )
