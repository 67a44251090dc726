"""A dataset directory: Parquet parts, the manifests that publish them, reading by manifest only."""

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage import hide_secrets, open_store, store_errors
from schemas.annotation import ANNOTATED, QUARANTINED, conform
from schemas.errors import OutputError, PublicationError
from schemas.manifest import DataFile, Manifest

_MANIFESTS: Final = "_manifest"


def write_part(dataset: str, run_id: str, part: int, rows: pa.Table) -> DataFile:
    """Write one Parquet file of annotated rows, sorted by image_id, and return its record.

    The name depends on run and part alone, so a retried write replaces its own file.
    """
    table = conform(rows, ANNOTATED).sort_by("image_id")
    buffer = BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        write_page_index=True,
        use_dictionary=["status", "fingerprint", "run_id", "segments.list.element.label"],
        # Minimum and maximum of an RLE or a hash of a message help no reader.
        write_statistics=["image_id", "uri", "status", "height", "width", "coverage", "mean_score"],
    )
    data = buffer.getvalue()
    path = f"images/run={run_id}/part-{part:06d}.parquet"
    write_bytes(dataset, path, data)
    quarantined = table.filter(pa.compute.equal(table["status"], QUARANTINED))
    errors = quarantined["error"].to_pylist()
    reasons = Counter(f"{error['stage']}/{error['code']}" for error in errors)
    return DataFile(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        rows=len(table),
        labelled=len(table) - len(quarantined),
        quarantined=len(quarantined),
        reasons=dict(sorted(reasons.items())),
    )


def write_bytes(dataset: str, path: str, data: bytes) -> None:
    """Write one file of the dataset whole; raises OutputError when the store refuses."""
    fs, root = open_store(dataset, OutputError)
    target = f"{root}/{path}"
    with store_errors("write to", dataset, OutputError):
        if isinstance(fs, LocalFileSystem):
            draft = _write_draft(target, data)
            os.replace(draft, target)
        else:
            fs.pipe_file(target, data)


def newest_version(dataset: str) -> int:
    """Return the number of the newest published version, 0 when there is none."""
    fs, root = open_store(dataset, OutputError)
    with store_errors("read", dataset, OutputError):
        try:
            names = fs.ls(f"{root}/{_MANIFESTS}", detail=False)
        except FileNotFoundError:
            return 0
    stems = [Path(name).name for name in names]
    numbers = [stem[1:-5] for stem in stems if stem.startswith("v") and stem.endswith(".json")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def publish(dataset: str, manifest: Manifest) -> None:
    """Publish a version by one exclusive write; raises PublicationError if it exists already."""
    fs, root = open_store(dataset, OutputError)
    target = f"{root}/{_MANIFESTS}/v{manifest.version:06d}.json"
    data = manifest.model_dump_json(indent=2).encode()
    with store_errors("publish to", dataset, OutputError):
        try:
            _create(fs, target, data)
        except FileExistsError:
            raise PublicationError(
                f"version {manifest.version} of {hide_secrets(dataset)} was published by another "
                "run meanwhile; this run's files are unpublished, run it again"
            ) from None


def read_manifest(dataset: str, version: int | None = None) -> Manifest:
    """Return a published manifest, the newest by default; raises OutputError if there is none."""
    fs, root = open_store(dataset, OutputError)
    newest = newest_version(dataset)
    if not newest:
        raise OutputError(f"{hide_secrets(dataset)} holds no published dataset")
    wanted = version or newest
    path = f"{root}/{_MANIFESTS}/v{wanted:06d}.json"
    with store_errors(f"read version {wanted} of", dataset, OutputError):
        return Manifest.model_validate_json(fs.cat_file(path))


def read_rows(
    dataset: str, manifest: Manifest, columns: Sequence[str] | None = None, batch_rows: int = 256
) -> Iterator[pa.Table]:
    """Yield the rows of a version in tables of at most `batch_rows`, file by file."""
    fs, root = open_store(dataset, OutputError)
    for part in manifest.images:
        with fs.open(f"{root}/{part.path}", "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_rows, columns=columns):
                yield pa.Table.from_batches([batch])


def _create(fs: fsspec.AbstractFileSystem, target: str, data: bytes) -> None:
    """Write `target` whole, or raise FileExistsError and leave it as it is."""
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(target, data, mode="create")
        return
    draft = _write_draft(target, data)
    try:
        os.link(draft, target)  # unlike a rename, a link never replaces
    finally:
        os.unlink(draft)


def _write_draft(target: str, data: bytes) -> str:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    draft = f"{target}.{uuid.uuid4().hex}.draft"
    with open(draft, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return draft
