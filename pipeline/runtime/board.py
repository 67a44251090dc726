"""The board: an actor to which all workers of a flow report, and what they report with."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf
from typing import Any, Final

import ray

from pipeline.meter import Spent, add_to
from pipeline.runtime.errors import told
from pipeline.runtime.metrics import FlowMetrics
from pipeline.runtime.spans import Spans, Tracing
from schemas.errors import SegmillError
from schemas.meter import FlowMeter, StageMeter

TASKS: Final = "tasks"  # the pool of everything that is no actor: free CPUs
WRITE: Final = "write"


@dataclass(frozen=True)
class Crew:
    """Who works on a flow: the steps in their order with their pools, and the pools' sizes."""

    run_id: str
    images: int
    pool_of: Mapping[str, str]
    workers: Mapping[str, int]  # by pool; those of tasks at the start
    cores: int  # of the machines, which all pools share, at the start
    tracing: Tracing | None = None


class Board:
    """Actor that adds up what has left each stage and what it took, and knows what is at work."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._spent: dict[str, Spent] = {}
        self._started = time.monotonic()
        self._began: float | None = None  # the first intake
        self._last: float | None = None  # the newest report
        self._ready: dict[str, list[float]] = {}  # when each actor of a pool was
        self._at_work: dict[str, int] = {}
        self._tried: dict[str, dict[int, Spent]] = {}  # by stage and images per call
        self._error: SegmillError | None = None
        self._metrics = FlowMetrics(crew.run_id)
        # Since when there are so many workers of tasks, and cores.
        self._sizes: list[tuple[float, int, int]] = [(-inf, crew.workers[TASKS], crew.cores)]
        self._plan(crew.workers)
        self._spans = crew.tracing and Spans(crew.tracing, crew.run_id, crew.images)

    def resize(self, tasks: int, cores: int) -> None:
        """Take note of how many workers of tasks and cores there are now."""
        if (tasks, cores) != self._sizes[-1][1:]:
            self._sizes.append((time.monotonic(), tasks, cores))
            self._plan({**self._crew.workers, TASKS: tasks})

    def report(self, error: SegmillError) -> None:
        """Keep the first error."""
        self._error = self._error or error

    def reported(self) -> SegmillError | None:
        """Return the first error."""
        return self._error

    def warm(self, pool: str, seconds: float) -> None:
        """Take note of an actor that has loaded its model."""
        self._ready.setdefault(pool, []).append(time.monotonic())
        self._metrics.warm(pool, seconds)

    def add(self, spent: Mapping[str, Spent], quarantined: int = 0) -> None:
        """Take what one call of a stage did and took, by step."""
        now = time.monotonic()
        took_s = sum(what.busy_s for what in spent.values())
        self._began = now - took_s if self._began is None else self._began
        self._last = now
        add_to(self._spent, spent)
        self._metrics.add(spent, quarantined)
        if self._spans:
            self._spans.add(spent)

    def tried(self, stage: str, size: int, images: int, took_s: float) -> None:
        """Take what calls of so many images each took, which `add` has taken as well."""
        spent = {size: Spent(images=images, busy_s=took_s)}
        add_to(self._tried.setdefault(stage, {}), spent)

    def read(self) -> dict[str, int]:
        """Return how many images have left each stage."""
        return {step: spent.images for step, spent in self._spent.items()}

    def meter(self) -> FlowMeter | None:
        """Return what was measured; None where nothing was written."""
        if self._began is None or self._last is None or WRITE not in self._spent:
            return None
        # The first images may be fetched while models load; those do not wait for anybody.
        start = max([self._began, *(min(times) for times in self._ready.values())])
        return FlowMeter(
            images=self._spent[WRITE].images,
            seconds=self._last - start,
            start_up_s=start - self._started,
            cores=_mean(self._offered(start, self._last)[1], self._last - start),
            stages=tuple(
                self._stage(step, pool, start, self._last)
                for step, pool in self._crew.pool_of.items()
                if step in self._spent
            ),
        )

    def close(self) -> None:
        """Send the spans that are left; the flow is over."""
        if self._spans:
            self._spans.close()

    def _plan(self, workers: Mapping[str, int]) -> None:
        by_step = {step: workers[pool] for step, pool in self._crew.pool_of.items()}
        self._metrics.plan(by_step, self._crew.images)

    def _offered(self, start: float, end: float) -> tuple[float, float]:
        """Return the seconds of all workers of tasks, and of all cores, between two times."""
        tasks_s = cores_s = 0.0
        for (since, tasks, cores), (until, _, _) in pairwise([*self._sizes, (end, 0, 0)]):
            seconds = max(0.0, min(until, end) - max(since, start))
            tasks_s, cores_s = tasks_s + tasks * seconds, cores_s + cores * seconds
        return tasks_s, cores_s

    def _stage(self, step: str, pool: str, start: float, end: float) -> StageMeter:
        spent, workers = self._spent[step], self._crew.workers[pool]
        if pool == TASKS:
            workers = _mean(self._offered(start, end)[0], end - start)
            worker_s, _ = self._offered(self._began or end, end)
        else:
            # An actor that took the place of a dead one is no further worker.
            readies = self._ready.get(pool, [])[:workers] or [self._began or end] * workers
            worker_s = sum(end - ready for ready in readies)
        return StageMeter(
            name=step,
            pool=pool,
            workers=workers,
            worker_s=worker_s,
            images=spent.images,
            size_bytes=spent.size_bytes,
            busy_s=spent.busy_s,
            cpu_s=spent.cpu_s,
            tried_s={
                size: tried.busy_s / tried.images
                for size, tried in self._tried.get(step, {}).items()
            },
        )

    def begin(self, key: str) -> int:
        """Take note of a batch; return how often it was begun before and not ended."""
        before = self._at_work.get(key, 0)
        self._at_work[key] = before + 1
        return before

    def end(self, key: str) -> None:
        """Forget a batch."""
        self._at_work.pop(key, None)


def _mean(total_s: float, seconds: float) -> int:
    """Return the mean over so many seconds, rounded up: what is made of it is a ceiling."""
    return max(1, ceil(total_s / seconds - 1e-6)) if seconds > 0 else 1  # less rounding errors


@contextmanager
def reporting(board: Any) -> Iterator[None]:
    """Tell the board what fails inside: on its way to the driver Ray Data loses the error."""
    try:
        yield
    except Exception as error:
        with suppress(ray.exceptions.RayError):
            ray.get(board.report.remote(told(error)), timeout=10)
        raise


def reported_error(board: Any) -> SegmillError | None:
    """Return the first error that a worker reported."""
    with suppress(ray.exceptions.RayError):
        error: SegmillError | None = ray.get(board.reported.remote(), timeout=10)
        return error
    return None
