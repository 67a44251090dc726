"""`segmill verify`: is a version of a dataset whole?"""

import time
from dataclasses import dataclass

from pipeline.dataset import read_manifest
from pipeline.storage import hide_secrets
from pipeline.verification import check_version
from schemas.upkeep_config import VerifyConfig


@dataclass(frozen=True)
class VerifyResult:
    """What was read, and everything that is wrong with it."""

    dataset: str
    version: int
    images: int
    files: int
    label_maps: int
    problems: tuple[str, ...]
    seconds: float


def verify(config: VerifyConfig) -> VerifyResult:
    """Read every file of a version and compare it with the manifest.

    Raises OutputError when there is no such version.
    """
    started = time.monotonic()
    manifest = read_manifest(config.dataset, config.version)
    sample = None if config.all_label_maps else config.sample
    problems, label_maps = check_version(config.dataset, manifest, sample)
    return VerifyResult(
        dataset=hide_secrets(config.dataset),
        version=manifest.version,
        images=manifest.counts.inventory,
        files=len(manifest.images) + len(manifest.embeddings) + len(manifest.corrections),
        label_maps=label_maps,
        problems=tuple(problems),
        seconds=time.monotonic() - started,
    )
