"""What runs in the workers: the intake, and stages as tasks or in the actors of a pool."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any, Final, Protocol

import pyarrow as pa
import ray

from pipeline.meter import timed
from pipeline.runtime.board import reporting
from pipeline.stages.rows import quarantine, slices
from schemas.annotation import conform, table_from_rows

# How often an image may be at work, alone, in a worker that dies, before it is the image's fault.
_MAX_DEATHS: Final = 3


class Stage(Protocol):
    """What the pipeline is made of: picklable settings, callable from table to table."""

    @property
    def name(self) -> str:
        """One word, shown in progress and in Ray's dashboard."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the table that the stage returns."""

    def warm_up(self) -> None:
        """Load what the stage needs to be at work at once."""

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return one row per row of `images`."""


class Intake(Protocol):
    """Where rows come from: picklable settings, callable from a unit of work to tables."""

    @property
    def name(self) -> str:
        """One word, shown in progress."""

    @property
    def steps(self) -> tuple[str, ...]:
        """What it does, in its order, as the meter tells them apart; `name` is one of them."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the tables."""

    def __call__(self, unit: dict[str, Any], /) -> Iterator[pa.Table]:
        """Yield the rows of a unit, a few at a time."""


def take_in(units: pa.Table, intake: Intake, board: Any) -> Iterator[pa.Table]:
    """Yield the rows of the units, held to their schema and counted."""
    with reporting(board):
        for unit in units.to_pylist():
            tables = intake(unit)
            while True:
                with timed(intake.name) as section:
                    table = next(tables, None)
                    if table is not None:
                        table = conform(table, intake.schema)
                        section.count(len(table), table.nbytes)
                board.add.remote(section.spent)
                if table is None:
                    break
                yield table


def run_stage(images: pa.Table, stage: Stage, board: Any) -> pa.Table:
    """Apply a stage, hold it to its schema, and tell what has left it and what that took."""
    with reporting(board), timed(stage.name) as section:
        result = conform(stage(images), stage.schema)
        section.count(len(result), result.nbytes)
    board.add.remote(section.spent)
    return result


class Worker:
    """One actor of a pool: keeps its stage, and with it the loaded model.

    Ray restarts an actor that dies and gives it the same batch again, for ever. So each batch is
    announced: one that was announced before and never finished is taken apart, and an image that
    was at work alone in several workers that died is quarantined untried.

    `sizes` are tried in turn, a batch for each: it is cut into so many images per call, and the
    board is told what they took.
    """

    def __init__(self, stage: Stage, board: Any, sizes: Sequence[int] = ()) -> None:
        self._stage = stage
        self._board = board
        self._sizes = cycle(sizes)
        self._warming = len(sizes)  # batches: kernels are chosen, caches filled
        # Here and not at the first batch: no image is to blame where a model does not load, and
        # the time is no service.
        started = time.monotonic()
        with reporting(board):
            stage.warm_up()
        board.warm.remote(stage.name, time.monotonic() - started)

    def __call__(self, images: pa.Table) -> pa.Table:
        """Return the rows of the stage."""
        if len(images) and self._begin("batch", images):
            alone = [self._alone(images[index : index + 1]) for index in range(len(images))]
            result = pa.concat_tables(alone)
        elif size := next(self._sizes, None):
            result = self._cut(images, size)
        else:
            result = run_stage(images, self._stage, self._board)
        self._board.end.remote(self._key("batch", images))
        return result

    def _cut(self, images: pa.Table, size: int) -> pa.Table:
        started = time.perf_counter()
        made = [run_stage(call, self._stage, self._board) for call in slices(images, size)]
        took_s = time.perf_counter() - started
        if self._warming:
            self._warming -= 1
        elif len(images) >= size:
            self._board.tried.remote(self._stage.name, size, len(images), took_s)
        return pa.concat_tables(made)

    def _alone(self, image: pa.Table) -> pa.Table:
        deaths = self._begin("alone", image)
        if deaths >= _MAX_DEATHS:
            message = f"the worker died each of {deaths} times that it was at work on this image"
            row = quarantine(image.to_pylist()[0], self._stage.name, "worker_died", message)
            image = table_from_rows([row], image.schema)
        result = run_stage(image, self._stage, self._board)
        self._board.end.remote(self._key("alone", image))
        return result

    def _begin(self, how: str, images: pa.Table) -> int:
        """Announce a batch; return how often it was announced before and not finished."""
        try:
            return int(ray.get(self._board.begin.remote(self._key(how, images))))
        except ray.exceptions.RayError:  # the board itself is being restarted
            return 0

    def _key(self, how: str, images: pa.Table) -> str:
        ids = "".join(images["image_id"].to_pylist())
        return f"{self._stage.name} {how} {hashlib.blake2b(ids.encode()).hexdigest()}"


def pool_class(name: str) -> type[Worker]:
    """Return the worker under the stage's name, which Ray shows for its operators and actors."""
    return type(name.capitalize(), (Worker,), {})
