"""The versions of a dataset: published by one manifest each, read by manifest only."""

from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.files import create_bytes, list_files, open_parts, read_bytes
from pipeline.storage import hide_secrets, open_store, store_errors
from schemas.annotation import SCHEMA_VERSION
from schemas.errors import OutputError, PublicationError
from schemas.manifest import Manifest

MANIFESTS: Final = "_manifest"


def versions(dataset: str) -> list[int]:
    """Return the numbers of the published versions, ascending."""
    names = [path.rpartition("/")[2] for path in list_files(dataset, MANIFESTS)]
    stems = [name[1:-5] for name in names if name.startswith("v") and name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def newest_version(dataset: str) -> int:
    """Return the number of the newest published version, 0 when there is none."""
    return max(versions(dataset), default=0)


def manifest_path(version: int) -> str:
    """Return where the manifest of a version is, relative to the dataset."""
    return f"{MANIFESTS}/v{version:06d}.json"


def publish(dataset: str, manifest: Manifest) -> None:
    """Publish a version by one exclusive write; raises PublicationError if it exists already."""
    data = manifest.model_dump_json(indent=2).encode()
    if not create_bytes(dataset, manifest_path(manifest.version), data):
        raise PublicationError(
            f"version {manifest.version} of {hide_secrets(dataset)} was published by another "
            "run meanwhile; nothing is lost: run again, and what this run finished is taken over"
        )


def read_manifest(dataset: str, version: int | None = None) -> Manifest:
    """Return a published manifest, the newest by default; raises OutputError if there is none."""
    known = versions(dataset)
    if not known:
        raise OutputError(f"{hide_secrets(dataset)} holds no published dataset")
    wanted = version or known[-1]
    try:
        manifest = Manifest.model_validate_json(read_bytes(dataset, manifest_path(wanted)))
    except FileNotFoundError:
        named = ", ".join(map(str, known[-20:]))
        raise OutputError(
            f"cannot read version {wanted} of {hide_secrets(dataset)}: it does not exist; "
            f"there are {named}"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise OutputError(
            f"version {wanted} of {hide_secrets(dataset)} cannot be read: its manifest is of "
            f"another layout ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise OutputError(
            f"version {wanted} of {hide_secrets(dataset)} has rows of schema "
            f"{manifest.schema_version}, this Segmill reads and writes {SCHEMA_VERSION}: annotate "
            "into another directory"
        )
    return manifest


def read_rows(
    dataset: str, manifest: Manifest, columns: Sequence[str] | None = None, batch_rows: int = 256
) -> Iterator[pa.Table]:
    """Yield the rows of a version in tables of at most `batch_rows`, file by file.

    Raises OutputError where a file cannot be read.
    """
    fs, root = open_store(dataset, OutputError)
    for part in manifest.images:
        with (
            store_errors(f"read {part.path} of", dataset, OutputError),
            open_parts(fs, f"{root}/{part.path}") as file,
        ):
            for batch in pq.ParquetFile(file).iter_batches(batch_rows, columns=columns):
                yield pa.Table.from_batches([batch])


def read_uris(dataset: str, manifest: Manifest) -> Iterator[str]:
    """Yield the URIs of all images of a version, labelled or not."""
    for table in read_rows(dataset, manifest, ("uri",), batch_rows=4096):
        yield from table["uri"].to_pylist()
