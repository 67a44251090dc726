"""The records of runs in a dataset: written by the run itself, read by whoever watches it."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.files import in_parallel, list_files, read_bytes, write_bytes
from pipeline.parts import RUNS
from pipeline.run_log import tell
from pipeline.secrets import hide_secrets
from pipeline.storage import describe
from schemas.errors import SegmillError
from schemas.meter import RunMeter
from schemas.runs import ANNOTATE, Outcome, RunEnd, RunStart

_START: Final = "start.json"
_END: Final = "end.json"

Record = TypeVar("Record", bound=BaseModel)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """One run: its start if it found anything to do, and its end unless it was killed."""

    run_id: str
    start: RunStart | None
    end: RunEnd | None

    @property
    def command(self) -> str:
        """The command of Segmill that it ran; `annotate` where neither record can be read."""
        record = self.end or self.start
        return record.command if record else ANNOTATE


class Recorder:
    """Records start and end of a run in the dataset that it holds; a context around its work."""

    def __init__(self, dataset: str, run_id: str, command: str = ANNOTATE) -> None:
        self._dataset = dataset
        self._run_id = run_id
        self._command = command
        self._started = datetime.now(UTC)
        self._outcome: Outcome = "failed"
        self.version = 0  # the newest one that the run knows of
        self.meter: RunMeter | None = None

    def __enter__(self) -> Self:
        tell("the run has the dataset", dataset=self._dataset)
        return self

    def plan(self, images: int, to_do: int) -> None:
        """Record what the run is about to do, of all images of the source."""
        start = RunStart(
            run_id=self._run_id,
            command=self._command,
            started=self._started,
            images=images,
            to_do=to_do,
        )
        _write(self._dataset, self._run_id, _START, start)

    def succeed(self, version: int, *, published: bool) -> None:
        """Take note that the run reached its aim."""
        self.version = version
        self._outcome = "published" if published else "unchanged"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        end = RunEnd(
            run_id=self._run_id,
            command=self._command,
            started=self._started,
            ended=datetime.now(UTC),
            outcome=self._outcome,
            version=self.version,
            error=_line(error),
            meter=self.meter,
        )
        tell("the run has ended", **end.model_dump(mode="json", exclude={"run_id"}))
        try:
            _write(self._dataset, self._run_id, _END, end)
        except SegmillError as trouble:  # what happened inside counts
            logger.warning("the end of the run could not be recorded: %s", trouble)


def _line(error: BaseException | None) -> str | None:
    if error is None or isinstance(error, KeyboardInterrupt):
        return None
    if isinstance(error, SegmillError):
        return hide_secrets(" ".join(str(error).split()))
    return describe(error)


def newest_runs(dataset: str, most: int) -> list[RunRecord]:
    """Return the newest runs that left a record, the newest first."""
    kept: dict[str, set[str]] = {}
    for path in list_files(dataset, RUNS):
        folders = path.split("/")
        if len(folders) == 3 and folders[2] in (_START, _END):
            kept.setdefault(folders[1], set()).add(folders[2])
    # An id begins with the UTC time of its run's start.
    ids = sorted(kept, reverse=True)[:most]
    return in_parallel(lambda run_id: _read(dataset, run_id, kept[run_id]), ids)


def read_end(dataset: str, run_id: str) -> RunEnd | None:
    """Return how a run ended; None where it left no record of that."""
    return _record(dataset, run_id, _END, RunEnd)


def _read(dataset: str, run_id: str, names: set[str]) -> RunRecord:
    start = _record(dataset, run_id, _START, RunStart) if _START in names else None
    end = _record(dataset, run_id, _END, RunEnd) if _END in names else None
    return RunRecord(run_id, start, end)


def _record(dataset: str, run_id: str, name: str, kind: type[Record]) -> Record | None:
    try:
        return kind.model_validate_json(read_bytes(dataset, f"{RUNS}/{run_id}/{name}"))
    except (FileNotFoundError, ValidationError) as error:
        logger.warning("passed over %s of run %s: %s", name, run_id, error)
        return None


def _write(dataset: str, run_id: str, name: str, record: BaseModel) -> None:
    write_bytes(dataset, f"{RUNS}/{run_id}/{name}", record.model_dump_json(indent=2).encode())
