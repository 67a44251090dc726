"""`segmill versions`: what was published, when, and what changed from one to the next."""

from dataclasses import dataclass

from pipeline.dataset import read_manifest, versions
from pipeline.storage import hide_secrets
from schemas.errors import OutputError
from schemas.manifest import Manifest
from schemas.upkeep_config import VersionsConfig


@dataclass(frozen=True)
class VersionsResult:
    """The manifests, oldest first."""

    dataset: str
    manifests: tuple[Manifest, ...]


def list_versions(config: VersionsConfig) -> VersionsResult:
    """Read all manifests; raises OutputError where there is none."""
    numbers = versions(config.dataset)
    if not numbers:
        raise OutputError(f"{hide_secrets(config.dataset)} holds no published dataset")
    return VersionsResult(
        dataset=hide_secrets(config.dataset),
        manifests=tuple(read_manifest(config.dataset, number) for number in numbers),
    )
