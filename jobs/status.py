"""`segmill status`: what of a dataset is done, failed and left, and whether all is well.

Runs of `annotate` alone say whether it is: nothing else reads the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from pipeline.dataset import newest_version, read_manifest, versions
from pipeline.lock import Held, read_lock
from pipeline.parts import RUNS, recorded_parts
from pipeline.run_records import RunRecord, newest_runs
from pipeline.storage import hide_secrets
from schemas.errors import OutputError
from schemas.manifest import Manifest, Part
from schemas.runs import ANNOTATE, Outcome
from schemas.status_config import StatusConfig

State = Outcome | Literal["running", "killed"]

_GOOD: Final = ("published", "unchanged")  # it brought the dataset up to date


@dataclass(frozen=True)
class RunStatus:
    """One run; `killed` is one without an end whose lock is not its own or no longer renewed."""

    run_id: str
    command: str
    state: State
    started: datetime | None = None
    ended: datetime | None = None
    to_do: int | None = None  # images, as the run found them; None before it knew
    error: str | None = None

    @property
    def is_annotation(self) -> bool:
        """Whether it was to bring the dataset up to date."""
        return self.command == ANNOTATE

    @property
    def is_good(self) -> bool:
        """Whether it brought the dataset up to date."""
        return self.is_annotation and self.state in _GOOD


@dataclass(frozen=True)
class StatusResult:
    """The newest version, the newest runs, the lock, and everything that is not well."""

    dataset: str
    manifest: Manifest | None
    runs: tuple[RunStatus, ...]  # the newest first
    lock: Held | None
    finished: int  # images in parts that are not published yet
    left: int | None  # images that the newest annotation has still to do; None: not known
    age_s: float | None  # since the dataset was last brought up to date
    problems: tuple[str, ...]


def status(config: StatusConfig) -> StatusResult:
    """Read versions, records and lock of a dataset.

    Raises OutputError when there is no trace of a dataset.
    """
    newest = newest_version(config.dataset)
    manifest = read_manifest(config.dataset, newest) if newest else None
    lock = read_lock(config.dataset)
    records = _records(config.dataset, config.runs)
    if records and records[0].end is None and not _holds(lock, records[0].run_id):
        lock = read_lock(config.dataset)  # it may have started since the lock was read
    if manifest is None and lock is None and not records:
        raise OutputError(f"{hide_secrets(config.dataset)} holds no dataset, and no run of one")
    runs = _runs(records, lock)
    annotations = [run for run in runs if run.is_annotation]
    parts = recorded_parts(config.dataset)
    age_s = _age_s(runs, _annotated(config.dataset, runs, manifest))
    return StatusResult(
        dataset=hide_secrets(config.dataset),
        manifest=manifest,
        runs=runs[: config.runs],
        lock=lock,
        finished=sum(part.images.rows for part in parts.values()),
        left=_left(annotations, parts),
        age_s=age_s,
        problems=tuple(_problems(config, annotations, manifest, age_s)),
    )


def _records(dataset: str, shown: int) -> list[RunRecord]:
    """Return the newest runs: those to show, and of annotations the last that ended, and well."""
    most = max(shown, 2)  # no more than one is at work
    while True:
        records = newest_runs(dataset, most)
        found_good = any(_run(record, None).is_good for record in records)
        if found_good or len(records) < most:
            return records
        most *= 4


def _runs(records: Sequence[RunRecord], lock: Held | None) -> tuple[RunStatus, ...]:
    runs = [_run(record, lock) for record in records]
    if lock is not None and lock.holder.run_id not in {run.run_id for run in runs}:
        # It has not got as far as to know what it has to do, or leaves no record.
        holder = lock.holder
        started = datetime.fromtimestamp(holder.since, UTC)
        runs.insert(0, RunStatus(holder.run_id, holder.command, _state_of(lock), started))
    return tuple(runs)


def _run(record: RunRecord, lock: Held | None) -> RunStatus:
    run_id, command = record.run_id, record.command
    to_do = record.start.to_do if record.start else None
    if record.end is not None:
        end = record.end
        return RunStatus(run_id, command, end.outcome, end.started, end.ended, to_do, end.error)
    state: State = "killed"
    if lock is not None and _holds(lock, run_id):
        state = _state_of(lock)
    started = record.start.started if record.start else None
    return RunStatus(run_id, command, state, started, to_do=to_do)


def _holds(lock: Held | None, run_id: str) -> bool:
    return lock is not None and lock.holder.run_id == run_id


def _state_of(lock: Held) -> Literal["running", "killed"]:
    return "running" if lock.is_alive else "killed"


def _annotated(
    dataset: str, runs: Sequence[RunStatus], manifest: Manifest | None
) -> Manifest | None:
    """Return the newest version that an annotation published, for all that is recorded."""
    others = {run.run_id for run in runs if not run.is_annotation}
    if manifest is None or manifest.run_id not in others:
        return manifest
    older = [number for number in versions(dataset) if number < manifest.version]
    before = read_manifest(dataset, older[-1]) if older else None
    return _annotated(dataset, runs, before)


def _left(annotations: Sequence[RunStatus], parts: dict[str, Part]) -> int | None:
    newest = annotations[0] if annotations else None
    if newest is None or newest.is_good:
        return 0
    if newest.to_do is None:
        return None
    own = f"{RUNS}/{newest.run_id}/"
    done = sum(part.images.rows for path, part in parts.items() if path.startswith(own))
    return max(0, newest.to_do - done)  # a batch that was repeated counts twice


def _age_s(runs: Sequence[RunStatus], manifest: Manifest | None) -> float | None:
    ends = [run.ended for run in runs if run.is_good and run.ended is not None]
    ends += [manifest.created] if manifest else []
    return max(0.0, (datetime.now(UTC) - max(ends)).total_seconds()) if ends else None


def _problems(
    config: StatusConfig,
    annotations: Sequence[RunStatus],
    manifest: Manifest | None,
    age_s: float | None,
) -> list[str]:
    problems = []
    over = [run for run in annotations if run.state != "running"]
    if over and not over[0].is_good:
        why = f": {over[0].error}" if over[0].error else ""
        problems.append(f"the last run, {over[0].run_id}, was {over[0].state}{why}")
    limit = config.max_age_hours
    if limit is not None and (age_s is None or age_s > limit * 3600):
        age = "never" if age_s is None else f"{timedelta(seconds=round(age_s))} ago"
        problems.append(f"no annotation has ended well for {limit:g} h; the last time was {age}")
    if manifest is not None:
        counts = manifest.counts
        if counts.quarantined > config.max_bad_fraction * counts.inventory:
            problems.append(
                f"{counts.quarantined} of {counts.inventory} images are quarantined, over the "
                f"share of {config.max_bad_fraction:g}"
            )
    return problems
