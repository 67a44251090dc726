"""What the manifests of a dataset record of the speed of the runs that published them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pipeline.dataset import read_manifest, versions
from schemas.manifest import Manifest

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

    @property
    def images_per_s(self) -> float | None:
        """Images done per second, start-up and listing included."""
        return self.done / self.seconds if self.seconds else None


def runs_of(dataset: str, newest: int) -> tuple[RunFigures, ...]:
    """Return the figures of a version and of some before it, the newest first."""
    numbers = [number for number in versions(dataset) if number <= newest][-MAX_RUNS:]
    return tuple(run_figures(read_manifest(dataset, number)) for number in reversed(numbers))


def run_figures(manifest: Manifest) -> RunFigures:
    """Return what one manifest records."""
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
    )


def _start(run_id: str) -> datetime | None:
    try:
        return datetime.strptime(run_id[:_START_LENGTH], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
