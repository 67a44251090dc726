"""The board: an actor to which all workers of a flow report, and what they report with."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from pipeline.runtime.errors import told
from schemas.errors import SegmillError


class Board:
    """Actor that adds up how many images have left each stage, and knows what is at work."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._at_work: dict[str, int] = {}
        self._error: SegmillError | None = None

    def report(self, error: SegmillError) -> None:
        """Keep the first error."""
        self._error = self._error or error

    def reported(self) -> SegmillError | None:
        """Return the first error."""
        return self._error

    def add(self, stage: str, images: int) -> None:
        """Count images that have left a stage."""
        self._counts[stage] = self._counts.get(stage, 0) + images

    def read(self) -> dict[str, int]:
        """Return how many images have left each stage."""
        return self._counts

    def begin(self, key: str) -> int:
        """Take note of a batch; return how often it was begun before and not ended."""
        before = self._at_work.get(key, 0)
        self._at_work[key] = before + 1
        return before

    def end(self, key: str) -> None:
        """Forget a batch."""
        self._at_work.pop(key, None)


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
