"""Is a version whole? Its files, their hashes, the account of rows, and label maps, read again."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files import in_parallel, read_bytes
from pipeline.segments import decode_label_map
from schemas.annotation import (
    ANNOTATED,
    CORRECTIONS,
    EMBEDDINGS,
    LABELLED,
    QUARANTINED,
    conform,
)
from schemas.errors import OutputError, SchemaError
from schemas.manifest import DataFile, Manifest, StoredFile

_THREADS = 4  # a file is whole in memory while it is checked


@dataclass(frozen=True)
class Checked:
    """What was found in one file."""

    problems: tuple[str, ...]
    image_ids: pa.ChunkedArray | None = None
    label_maps: int = 0


def check_version(dataset: str, manifest: Manifest, sample: int | None) -> tuple[list[str], int]:
    """Return every problem of a version, and how many label maps were decoded.

    About `sample` images are chosen for that by their ids; None takes all.
    """
    share = 1.0 if sample is None else min(1.0, sample / max(1, manifest.counts.labelled))
    by_path = {file.path: file for file in manifest.images}
    problems: list[str] = []
    label_maps = 0
    with _Ids() as ids:
        for paths in _windows(list(by_path)):
            for found in in_parallel(
                lambda path: _check_images(dataset, by_path[path], share), paths, _THREADS
            ):
                problems += found.problems
                label_maps += found.label_maps
                if found.image_ids is not None:
                    ids.add(found.image_ids)
        problems += ids.problems(manifest.counts.inventory)
    for files, schema in ((manifest.embeddings, EMBEDDINGS), (manifest.corrections, CORRECTIONS)):
        stored = {file.path: file for file in files}
        check = partial(_check_rows, dataset, stored, schema)
        for found in in_parallel(check, list(stored), _THREADS):
            problems += found.problems
    return problems + _account_problems(manifest), label_maps


def _windows(paths: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(paths), 4 * _THREADS):
        yield paths[start : start + 4 * _THREADS]


def _account_problems(manifest: Manifest) -> list[str]:
    counts = manifest.counts
    sums = {
        name: sum(getattr(file, name) for file in manifest.images)
        for name in ("rows", "labelled", "quarantined")
    }
    told = {
        "rows": counts.inventory,
        "labelled": counts.labelled,
        "quarantined": counts.quarantined,
    }
    return [
        f"the manifest tells {told[name]} {name}, its files have {sums[name]}"
        for name in told
        if told[name] != sums[name]
    ]


def _check_images(dataset: str, file: DataFile, share: float) -> Checked:
    table, problems = _read(dataset, file, ANNOTATED)
    if table is None:
        return Checked(tuple(problems))
    if len(table) != file.rows:
        problems.append(f"{file.path}: {len(table)} rows, not {file.rows}")
    statuses = Counter(table["status"].to_pylist())
    told = {LABELLED: file.labelled, QUARANTINED: file.quarantined}
    if statuses != Counter({status: count for status, count in told.items() if count}):
        problems.append(f"{file.path}: holds {dict(statuses)}, not {told}")
    chosen = pa.array(
        [int(image_id[:8], 16) < share * 2**32 for image_id in table["image_id"].to_pylist()]
    )
    label_maps = 0
    for row in table.filter(pc.and_(chosen, pc.equal(table["status"], LABELLED))).to_pylist():
        label_maps += 1
        problems += [f"{file.path}, {row['uri']}: {what}" for what in _label_map_problems(row)]
    return Checked(tuple(problems), table["image_id"], label_maps)


def _check_rows(
    dataset: str, stored: Mapping[str, StoredFile], schema: pa.Schema, path: str
) -> Checked:
    file = stored[path]
    table, problems = _read(dataset, file, schema)
    if table is not None and len(table) != file.rows:
        problems.append(f"{file.path}: {len(table)} rows, not {file.rows}")
    return Checked(tuple(problems))


def _read(dataset: str, file: StoredFile, schema: pa.Schema) -> tuple[pa.Table | None, list[str]]:
    """Return a file's table, or None where it cannot be read, and what is wrong with its bytes."""
    try:
        data = read_bytes(dataset, file.path)
    except FileNotFoundError:
        return None, [f"{file.path}: is missing"]
    except OutputError as error:
        return None, [f"{file.path}: {error}"]
    problems = []
    if len(data) != file.size_bytes:
        problems.append(f"{file.path}: {len(data)} bytes, not {file.size_bytes}")
    elif hashlib.sha256(data).hexdigest() != file.sha256:
        problems.append(f"{file.path}: its SHA-256 is not {file.sha256}")
    try:
        return conform(pq.ParquetFile(BytesIO(data)).read(), schema), problems
    except (pa.ArrowException, OSError, SchemaError) as error:
        return None, [*problems, f"{file.path}: cannot be read: {error}"]


def _label_map_problems(row: Mapping[str, Any]) -> Iterable[str]:
    """Yield what is wrong with the segments of one image: they must partition its label map."""
    size = (row["height"], row["width"])
    try:
        label_map_HW = decode_label_map(row["segments"], size)
    except (ValueError, IndexError, TypeError) as error:
        yield f"its segments are no label map: {error}"
        return
    for segment in row["segments"]:
        mask_HW = label_map_HW == segment["class_index"]
        if int(mask_HW.sum()) != segment["area"]:
            yield f"segment {segment['segment_id']} has {int(mask_HW.sum())} pixels, not its area"
        x0, y0, x1, y1 = segment["box"]
        if int(mask_HW[y0:y1, x0:x1].sum()) != segment["area"]:
            yield f"segment {segment['segment_id']} reaches out of its box"
    coverage = float((label_map_HW >= 0).mean())
    if abs(coverage - row["coverage"]) > 1e-6:
        yield f"{coverage:.6f} of it is labelled, not {row['coverage']:.6f}"


class _Ids:
    """All image ids of a version, on disk where they outgrow memory."""

    def __enter__(self) -> "_Ids":
        self._folder = TemporaryDirectory(prefix="segmill-verify-")
        self._database = duckdb.connect(
            str(Path(self._folder.name) / "ids.duckdb"), config={"memory_limit": "512MiB"}
        )
        self._database.execute("create table ids (image_id varchar)")
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(self, image_ids: pa.ChunkedArray) -> None:
        self._database.register("arriving", pa.table({"image_id": image_ids}))
        self._database.execute("insert into ids select image_id from arriving")
        self._database.unregister("arriving")

    def problems(self, inventory: int) -> list[str]:
        repeated = self._database.execute(
            "select image_id, count(*) from ids group by 1 having count(*) > 1 order by 1 limit 5"
        ).fetchall()
        found = [f"image {image_id} has {count} rows" for image_id, count in repeated]
        ((total,),) = self._database.execute("select count(*) from ids").fetchall()
        if total != inventory:
            found.append(f"{total} rows were read, the inventory has {inventory}")
        return found
