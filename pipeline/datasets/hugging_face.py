"""A local Hugging Face data set: Parquet files of the hub, or what `save_to_disk` writes.

Both hold images as a struct of `bytes` and `path`, one row per image; they are read with pyarrow.
A split is named by its files (`data/train-00000-of-00004.parquet`) or by a folder of theirs.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.datasets.folder import OWN_SETTINGS, own_classes
from pipeline.datasets.maps import decode_png
from pipeline.datasets.plan import DatasetEntry, Pair, Plan, Request
from schemas.errors import DatasetError

_SPLIT: Final = re.compile(r"([A-Za-z_]+)(?:[-.].*)?")
_NO_SPLITS: Final = frozenset({"data", "cache"})
# What Hugging Face's own loader knows as splits, wherever in a path it stands.
_USUAL_SPLITS: Final = frozenset(
    {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval",
     "evaluation"}
)  # fmt: skip
# Beside the data `datasets` writes what it has mapped or shuffled.
_CACHE: Final = re.compile(r"cache-.*\.arrow")
_END_BYTES: Final = 2**16
_PARQUET, _ARROW = ".parquet", ".arrow"


@dataclass(frozen=True, slots=True)
class CellBlob:
    """One cell of a table file: the bytes of an image."""

    path: Path
    group: int  # row group of a Parquet file, 0 of an Arrow file
    row: int  # within the group
    column: str
    columns: tuple[str, ...]  # what is read together

    @property
    def where(self) -> str:
        """File, row and column."""
        return f"{self.path} (group {self.group}, row {self.row}, column {self.column!r})"

    def read(self) -> bytes:
        """Return the bytes; raises ValueError for a row without any."""
        cell = _read_group(self.path, self.group, self.columns)[self.column][self.row].as_py()
        if not cell or not cell["bytes"]:
            raise ValueError("the row holds no bytes; write the data set with its images in it")
        return bytes(cell["bytes"])


def _plan(request: Request) -> Plan:
    vocabulary, index_of, ignored = own_classes(request)
    files = [
        path
        for path in sorted(request.source.rglob("*"))
        if path.suffix in {_PARQUET, _ARROW} and not _CACHE.fullmatch(path.name) and path.is_file()
    ]
    if not files:
        raise DatasetError(f"{request.source} has no .parquet or .arrow files")
    splits = {
        split: _pairs(split, paths, request)
        for split, paths in _by_split(request.source, files).items()
    }
    origin = tuple(
        f"{path.relative_to(request.source).as_posix()} {_digest(path)}" for path in files
    )
    return Plan(vocabulary, index_of, ignored, splits, decode_png, origin)


def _by_split(source: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the files of every split; raises DatasetError for one from several folders."""
    found: dict[str, list[Path]] = {}
    folder_of: dict[str, Path] = {}
    for path in files:
        split, folder = _split_of(source, path)
        other = folder_of.setdefault(split, folder)
        if other != folder:
            raise DatasetError(
                f"{other} and {folder} would be one split {split!r}: name them or their files "
                "train, val, ..., or give one of them as --source"
            )
        found.setdefault(split, []).append(path)
    return found


def _split_of(source: Path, path: Path) -> tuple[str, Path]:
    """Return the split of a file, and the folder that is, or holds, what it is named by.

    A usual name counts, first that of the file and then of folders below the source; then whatever
    the file's name begins with, and the nearest folder; that of the source only for its own files.
    """
    folders = [folder for folder in path.parents if folder.is_relative_to(source)]  # source last
    named = [
        (match[1] if (match := _SPLIT.fullmatch(name)) else "", place)
        for name, place in [(path.name, path.parent), *((one.name, one) for one in folders)]
    ]
    for split, place in named[:-1]:
        if split.lower() in _USUAL_SPLITS:
            return split, place
    for split, place in named if path.parent == source else named[:-1]:
        if split and split not in _NO_SPLITS:
            return split, place
    raise DatasetError(f"{path} does not say its split; name it or its folder train, val, ...")


def _digest(path: Path) -> str:
    """Return a hash of a file's length, beginning and end, where Parquet keeps its statistics."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_END_BYTES)
        file.seek(max(0, size - _END_BYTES))
        ends += file.read()
    return hashlib.sha256(b"%d " % size + ends).hexdigest()


def _pairs(split: str, paths: list[Path], request: Request) -> list[Pair]:
    pairs: list[Pair] = []
    for path in paths:
        schema, rows_of_groups = _describe(path)
        image_columns = [field.name for field in schema if _is_image(field.type)]
        mask = request.mask_column or _mask_column(path, image_columns, request.image_column)
        columns = (request.image_column, mask)
        for column in columns:
            if column not in image_columns:
                known = ", ".join(image_columns) or "none"
                raise DatasetError(f"{path} has no column {column!r} of images; there are: {known}")
        for group, rows in enumerate(rows_of_groups):
            for row in range(rows):
                image, labels = (CellBlob(path, group, row, name, columns) for name in columns)
                pairs.append(Pair(f"{split}-{len(pairs):08d}", image, labels))
    if not pairs:
        raise DatasetError(f"split {split!r} of {request.source} has no rows")
    return pairs


def _mask_column(path: Path, image_columns: list[str], image_column: str) -> str:
    others = [name for name in image_columns if name != image_column]
    if len(others) != 1:
        raise DatasetError(
            f"{path} has {len(others)} columns of images beside {image_column!r}"
            f"{': ' * bool(others)}{', '.join(others)}; --mask-column must name that of the masks"
        )
    return others[0]


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    value = kind.field("bytes").type
    return bool(pa.types.is_binary(value) or pa.types.is_large_binary(value))


def _describe(path: Path) -> tuple[pa.Schema, list[int]]:
    """Return the columns of a file, and its rows per group."""
    try:
        if path.suffix == _ARROW:
            table = _read_arrow(path)
            return table.schema, [table.num_rows]
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            rows = [file.metadata.row_group(group).num_rows for group in groups]
            return file.schema_arrow, rows
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=2)  # rows are asked for in order, so the last group is asked for again
def _read_group(path: Path, group: int, columns: tuple[str, ...]) -> pa.Table:
    try:
        if path.suffix == _ARROW:
            return _read_arrow(path).select(columns)
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=list(columns))
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _read_arrow(path: Path) -> pa.Table:
    """Map a stream of record batches into memory, which reads nothing yet."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


HUGGING_FACE = DatasetEntry(
    summary="Parquet or Arrow files of a Hugging Face data set, with --vocabulary",
    downloads=("*.parquet, or the folder of save_to_disk",),
    plan=_plan,
    takes=OWN_SETTINGS | {"image_column", "mask_column"},
)
