"""The manifest: the one file by which readers know what a dataset version holds."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.annotation import SCHEMA_VERSION
from schemas.vocabulary import Vocabulary

# How masks and vectors are stored: as they travelled, so that labels come out the same, or as a
# picture and in half precision, so that they nearly do.
Encoding = Literal["exact", "compact"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Record):
    """One Parquet file; `path` is relative to the dataset."""

    path: str
    sha256: str
    size_bytes: int
    rows: int


class DataFile(StoredFile):
    """One Parquet file of image rows."""

    labelled: int
    quarantined: int
    reasons: dict[str, int]  # quarantined rows by "stage/code"


class EmbeddingsFile(StoredFile):
    """One Parquet file of embeddings.

    It may hold rows of images that have changed or left since; a row is used only where its etag
    and its fingerprint are those of today.
    """

    encoding: Encoding
    rows_per_group: int  # of its row groups but the last


class Part(_Record):
    """What one write task finished: written as a small file after its data, so it is whole."""

    images: DataFile
    embeddings: EmbeddingsFile | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of its data files."""
        return tuple(file.path for file in (self.images, self.embeddings) if file)

    @property
    def size_bytes(self) -> int:
        """Size of its data files."""
        return self.images.size_bytes + (self.embeddings.size_bytes if self.embeddings else 0)


class Counts(_Record):
    """Where every image of the inventory ended; labelled + quarantined = inventory."""

    inventory: int
    labelled: int
    quarantined: int
    reasons: dict[str, int]


class Changes(_Record):
    """What a version did to the one before it: kept + done = inventory."""

    kept: int  # rows of the version before, or of a run that was cut short
    done: int  # rows of this run
    from_embeddings: int  # of those, labelled from kept embeddings without running a proposer
    removed: int  # images of the version before that are no longer in the source


class Manifest(_Record):
    """One published version of a dataset."""

    version: int
    schema_version: int = SCHEMA_VERSION
    created: datetime
    run_id: str
    lock: int  # number of the lock under which it was published
    fingerprint: str
    source: str
    vocabulary: Vocabulary
    counts: Counts
    changes: Changes
    images: tuple[DataFile, ...]
    embeddings: tuple[EmbeddingsFile, ...] = ()
    corrections: tuple[StoredFile, ...] = ()  # of one image the last one counts
    config: dict[str, Any]  # resolved settings of the run, without secrets
    models: dict[str, Any]  # what decided the labels: names, sha256 of weights, prompts
    software: dict[str, str]  # versions of the packages that matter

    @property
    def paths(self) -> set[str]:
        """Paths of its Parquet files."""
        return {file.path for file in (*self.images, *self.embeddings, *self.corrections)}
