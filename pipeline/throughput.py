"""What the manifests of a dataset record of the speed of the runs that published them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pipeline.dataset import read_manifest, versions
from pipeline.files import in_parallel
from pipeline.run_records import read_end
from schemas.manifest import Manifest
from schemas.meter import RunMeter

MAX_RUNS: Final = 10
_START_LENGTH: Final = len("20240506T070809Z")  # at the beginning of a run's id


@dataclass(frozen=True)
class RunFigures:
    """One run, from its start to the publication of its version."""

    version: int
    run_id: str
    created: datetime
    done: int  # images of the run itself
    from_embeddings: int
    kept: int
    removed: int
    seconds: float | None  # None where the run's id does not tell its start
    meter: RunMeter | None = None  # what it recorded of its stages, if it did

    @property
    def images_per_s(self) -> float | None:
        """Images done per second, start-up and listing included."""
        return self.done / self.seconds if self.seconds else None


def runs_of(dataset: str, newest: int) -> tuple[RunFigures, ...]:
    """Return the figures of a version and of some before it, the newest first."""
    numbers = [number for number in versions(dataset) if number <= newest][-MAX_RUNS:]
    manifests = [read_manifest(dataset, number) for number in reversed(numbers)]
    # `vacuum` or a hand may have taken away the records of old runs.
    ends = in_parallel(lambda run_id: read_end(dataset, run_id), [m.run_id for m in manifests])
    meters = [end.meter if end else None for end in ends]
    return tuple(run_figures(*pair) for pair in zip(manifests, meters, strict=True))


def run_figures(manifest: Manifest, meter: RunMeter | None = None) -> RunFigures:
    """Return what one manifest records, beside what the run measured."""
    changes = manifest.changes
    started = _start(manifest.run_id)
    seconds = (manifest.created - started).total_seconds() if started else None
    return RunFigures(
        version=manifest.version,
        run_id=manifest.run_id,
        created=manifest.created,
        done=changes.done,
        from_embeddings=changes.from_embeddings,
        kept=changes.kept,
        removed=changes.removed,
        seconds=seconds,
        meter=meter,
    )


def _start(run_id: str) -> datetime | None:
    try:
        return datetime.strptime(run_id[:_START_LENGTH], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
