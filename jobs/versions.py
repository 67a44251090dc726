"""`segmill versions`: what was published, when, and what changed from one to the next."""

from dataclasses import dataclass
from datetime import datetime

from pipeline.dataset import read_manifest, versions
from pipeline.storage import hide_secrets
from schemas.errors import OutputError
from schemas.manifest import Manifest
from schemas.upkeep_config import VersionsConfig


@dataclass(frozen=True)
class VersionSummary:
    """What a version holds, as numbers: its manifest names every file."""

    version: int
    images: int
    done: int  # by the run that published it
    removed: int
    quarantined: int
    files: int
    size_bytes: int
    created: datetime
    run_id: str

    @classmethod
    def of(cls, manifest: Manifest) -> "VersionSummary":
        """Sum up a manifest."""
        files = (*manifest.images, *manifest.embeddings, *manifest.corrections)
        return cls(
            version=manifest.version,
            images=manifest.counts.inventory,
            done=manifest.changes.done,
            removed=manifest.changes.removed,
            quarantined=manifest.counts.quarantined,
            files=len(files),
            size_bytes=sum(file.size_bytes for file in files),
            created=manifest.created,
            run_id=manifest.run_id,
        )


@dataclass(frozen=True)
class VersionsResult:
    """The versions, oldest first."""

    dataset: str
    versions: tuple[VersionSummary, ...]


def list_versions(config: VersionsConfig) -> VersionsResult:
    """Read all manifests; raises OutputError where there is none."""
    numbers = versions(config.dataset)
    if not numbers:
        raise OutputError(f"{hide_secrets(config.dataset)} holds no published dataset")
    found = (VersionSummary.of(read_manifest(config.dataset, number)) for number in numbers)
    return VersionsResult(hide_secrets(config.dataset), tuple(found))
