"""The Parquet files of a dataset: written whole under the name of their content, merged, listed.

A write task puts its files first and a small record of them last, so a record without whole files
cannot be. Files that no manifest names yet are found by their records: what a run finished before
it was cut short is not done again.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files import in_parallel, list_files, read_bytes, read_with, write_bytes
from schemas.annotation import (
    ANNOTATED,
    CORRECTIONS,
    EMBEDDINGS,
    LABELLED,
    QUARANTINED,
    conform,
)
from schemas.manifest import DataFile, EmbeddingsFile, Encoding, Part, StoredFile

RUNS: Final = "_runs"
IMAGES: Final = "images"
EMBEDDINGS_FOLDER: Final = "embeddings"
CORRECTIONS_FOLDER: Final = "corrections"

# Exact embeddings are megabytes an image; a row group is what a reader holds at once.
_EMBEDDINGS_ROW_GROUP: Final[Mapping[Encoding, int]] = {"exact": 8, "compact": 256}
_IMAGES_ROW_GROUP: Final = 4096
_NAME_DIGITS: Final = 24  # of the SHA-256 in a file's name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Some rows of a file, by image_id."""

    path: str
    image_ids: frozenset[str] | None = None  # None: all
    without: frozenset[str] = frozenset()  # of these


def write_part(dataset: str, run_id: str, rows: pa.Table) -> Part:
    """Write finished rows (ANNOTATED, or with embeddings) and then the record of them.

    Names depend on the content alone, so a retried write replaces its own files by equal ones.
    """
    images = write_images(dataset, run_id, rows.select(ANNOTATED.names))
    embeddings = None
    if "clip_embeds" in rows.column_names:
        kept = rows.filter(pc.equal(rows["status"], LABELLED)).select(EMBEDDINGS.names)
        embeddings = _write_embeddings(dataset, run_id, kept) if len(kept) else None
    part = Part(images=images, embeddings=embeddings)
    record = f"{RUNS}/{run_id}/parts/{images.sha256[:_NAME_DIGITS]}.json"
    write_bytes(dataset, record, part.model_dump_json().encode())
    return part


def write_images(dataset: str, run_id: str, rows: pa.Table) -> DataFile:
    """Write one Parquet file of annotated rows, sorted by image_id, and describe it."""
    table = conform(rows, ANNOTATED).sort_by("image_id")
    stored = _store(
        dataset,
        IMAGES,
        run_id,
        table,
        row_group_size=_IMAGES_ROW_GROUP,
        use_dictionary=[
            "status",
            "fingerprint",
            "run_id",
            "annotator",
            "segments.list.element.label",
        ],
        # Minimum and maximum of an RLE or a hash of a message help no reader.
        write_statistics=["image_id", "uri", "status", "height", "width", "coverage", "mean_score"],
    )
    quarantined = table.filter(pc.equal(table["status"], QUARANTINED))
    errors = quarantined["error"].to_pylist()
    reasons = Counter(f"{error['stage']}/{error['code']}" for error in errors)
    return DataFile(
        **stored.model_dump(),
        labelled=len(table) - len(quarantined),
        quarantined=len(quarantined),
        reasons=dict(sorted(reasons.items())),
    )


def write_corrections(dataset: str, run_id: str, rows: pa.Table) -> StoredFile:
    """Write one Parquet file of corrections, sorted by image_id, and describe it."""
    table = conform(rows, CORRECTIONS).sort_by("image_id")
    return _store(dataset, CORRECTIONS_FOLDER, run_id, table)


def merge_images(dataset: str, run_id: str, shares: Sequence[Share]) -> DataFile:
    """Write the chosen rows of some files as one file; an image repeated in one counts once."""
    return write_images(dataset, run_id, _chosen(dataset, shares, ANNOTATED))


def merge_embeddings(dataset: str, run_id: str, shares: Sequence[Share]) -> EmbeddingsFile:
    """Write the chosen rows of some files, all exact or all compact, as one file; likewise."""
    return _write_embeddings(dataset, run_id, _chosen(dataset, shares, EMBEDDINGS))


def _chosen(dataset: str, shares: Sequence[Share], schema: pa.Schema) -> pa.Table:
    tables = []
    for share in shares:
        table = read_table(dataset, share.path, schema)
        if share.image_ids is not None:
            table = table.filter(pc.is_in(table["image_id"], pa.array(share.image_ids)))
        if share.without:
            left_out = pc.is_in(table["image_id"], pa.array(share.without))
            table = table.filter(pc.invert(left_out))
        tables.append(table)
    merged = pa.concat_tables(tables)
    ids = merged["image_id"].combine_chunks()
    if pc.count_distinct(ids).as_py() < len(ids):
        first = pc.index_in(pc.unique(ids), ids)
        merged = merged.take(first)
    return merged


def read_table(dataset: str, path: str, schema: pa.Schema) -> pa.Table:
    """Return a whole Parquet file of the dataset; raises SchemaError for another schema."""
    data = read_with(dataset, path, lambda stream: stream.read())
    return conform(pq.ParquetFile(BytesIO(data)).read(), schema)


def read_columns(dataset: str, path: str, columns: Sequence[str]) -> pa.Table:
    """Return some columns of a Parquet file of the dataset, reading little besides."""
    return read_with(
        dataset, path, lambda stream: pq.ParquetFile(stream).read(columns=list(columns))
    )


def read_row_group(dataset: str, path: str, row_group: int) -> pa.Table:
    """Return one row group of a Parquet file of the dataset."""
    return read_with(dataset, path, lambda stream: pq.ParquetFile(stream).read_row_group(row_group))


def recorded_parts(dataset: str) -> dict[str, Part]:
    """Return what runs have finished and no later publication has tidied away, by record."""
    records = [path for path in list_files(dataset, RUNS) if is_record(path)]
    parts = in_parallel(lambda path: _read_record(dataset, path), records)
    return {path: part for path, part in zip(records, parts, strict=True) if part is not None}


def is_record(path: str) -> bool:
    """Say whether a file of the dataset is the record of a part, by its path."""
    folders = path.split("/")
    return len(folders) == 4 and folders[2] == "parts" and path.endswith(".json")


def _read_record(dataset: str, path: str) -> Part | None:
    try:
        return Part.model_validate_json(read_bytes(dataset, path))
    except (FileNotFoundError, ValueError) as error:
        # Gone since it was listed, or of another layout: its rows are done again.
        logger.warning("passed over the record %s: %s", path, error)
        return None


def _write_embeddings(dataset: str, run_id: str, rows: pa.Table) -> EmbeddingsFile:
    encoding: Encoding = "compact" if rows["mask_picture"].null_count < len(rows) else "exact"
    rows_per_group = _EMBEDDINGS_ROW_GROUP[encoding]
    stored = _store(
        dataset,
        EMBEDDINGS_FOLDER,
        run_id,
        conform(rows, EMBEDDINGS).sort_by("image_id"),
        row_group_size=rows_per_group,
        use_dictionary=["status", "proposal_fingerprint", "embedding_fingerprint"],
        write_statistics=["image_id"],
    )
    return EmbeddingsFile(**stored.model_dump(), encoding=encoding, rows_per_group=rows_per_group)


def _store(dataset: str, folder: str, run_id: str, table: pa.Table, **options: Any) -> StoredFile:
    """Write a table as one Parquet file under the name of its content, and describe that."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_index=True, **options)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"{folder}/run={run_id}/part-{digest[:_NAME_DIGITS]}.parquet"
    write_bytes(dataset, path, data)
    return StoredFile(path=path, sha256=digest, size_bytes=len(data), rows=len(table))
