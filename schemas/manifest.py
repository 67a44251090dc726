"""The manifest: the one file by which readers know what a dataset version holds."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.annotation import SCHEMA_VERSION
from schemas.vocabulary import Vocabulary


class DataFile(BaseModel):
    """One Parquet file of a version; `path` is relative to the dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    size_bytes: int
    rows: int
    labelled: int
    quarantined: int
    reasons: dict[str, int]  # quarantined rows by "stage/code"


class Counts(BaseModel):
    """Where every image of the inventory ended; labelled + quarantined = inventory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inventory: int
    labelled: int
    quarantined: int
    reasons: dict[str, int]


class Manifest(BaseModel):
    """One published version of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    schema_version: int = SCHEMA_VERSION
    created: datetime
    run_id: str
    fingerprint: str
    source: str
    vocabulary: Vocabulary
    counts: Counts
    images: tuple[DataFile, ...]
    config: dict[str, Any]  # resolved settings of the run, without secrets
    models: dict[str, Any]  # what decided the labels: names, sha256 of weights, prompts
    software: dict[str, str]  # versions of the packages that matter
