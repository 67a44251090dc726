"""Images packed into larger files: members of a tar (WebDataset), rows of a Parquet file.

Each has a URI of its own, the file's and a fragment by which it is read again without an index:

    s3://bucket/shard-000.tar#bytes=000000001536-000000022015/000123.jpg  first and last byte, name
    hf://datasets/org/name/train.parquet#row=000000017/image/cat.png  row, column, stored path

Numbers have one width, so that the order of URIs is that of the file. A member of a tar
is a range of its bytes. Of a Parquet file a whole row group is read, and kept for the rows that
come next: whoever asks for many should ask in that order, or have more row groups kept.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import BinaryIO, Final

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import SourceError

TAR: Final = ".tar"
PARQUET: Final = ".parquet"
PACKED: Final = frozenset({"tar", "parquet"})  # as extensions

_RANGE: Final = re.compile(r"(.*\.tar)#bytes=(\d+)-(\d+)/.*", re.DOTALL | re.IGNORECASE)
_CELL: Final = re.compile(r"(.*\.parquet)#row=(\d+)/([^/]+)(?:/.*)?", re.DOTALL | re.IGNORECASE)
_ROWS_AT_ONCE: Final = 10_000
_END_BYTES: Final = 2**20  # of zeros, read at once
# What one row group's images may weigh: they are in memory together.
_MAX_ROW_GROUP_BYTES: Final = 2**30


@dataclass(frozen=True)
class Range:
    """A member of a tar, as a half-open range of bytes."""

    start: int
    stop: int


@dataclass(frozen=True)
class Cell:
    """An image in a Parquet file."""

    row: int
    column: str


@dataclass(frozen=True)
class Member:
    """An image in a packed file: the fragment of its URI, its name, its size where it is known."""

    fragment: str
    name: str
    size_bytes: int | None


def split_member(uri: str) -> tuple[str, Range | Cell | None]:
    """Return the file of a URI, and the place in it; None: the file itself is the image."""
    if found := _RANGE.fullmatch(uri):
        return found[1], Range(int(found[2]), int(found[3]) + 1)
    if found := _CELL.fullmatch(uri):
        return found[1], Cell(int(found[2]), found[3])
    return uri, None


def is_cell(uri: str) -> bool:
    """Say whether an image is in a Parquet file, of which a whole row group is read for it."""
    return "#row=" in uri and isinstance(split_member(uri)[1], Cell)


def is_packed(path: str) -> bool:
    """Say whether a file is opened instead of decoded, by its name."""
    return path.lower().endswith((TAR, PARQUET))


def members(fs: fsspec.AbstractFileSystem, path: str, image_column: str | None) -> Iterator[Member]:
    """Yield what a packed file holds, reading no more of it than lists it.

    The headers of a tar lie between its members, so that it is read through; of Parquet the footer
    and the stored paths are. Raises what the store or a damaged file makes it raise, and
    SourceError where a Parquet file has no column of images, or several and none is named.
    """
    if path.lower().endswith(TAR):
        yield from _tar_members(fs, path)
    else:
        yield from _parquet_members(fs, path, image_column)


def _tar_members(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Member]:
    with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
            if info.isreg() and not info.issparse():
                start = info.offset_data
                place = f"bytes={start:012}-{start + info.size - 1:012}/{info.name}"
                yield Member(place, info.name, info.size)
        _check_end(file, tar.offset)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raise ReadError unless a tar ends here: in a block of zeros, and nothing but zeros after it.

    `tarfile` takes a header that it cannot read for the end, and so would it take the end of a file
    that was cut between two members.
    """
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"unexpected end of data at byte {offset}: no zeros mark the end")
    while end:
        if end.strip(b"\0"):
            raise tarfile.ReadError(f"no header of a member at byte {offset}, but not the end")
        end = file.read(_END_BYTES)


def _parquet_members(
    fs: fsspec.AbstractFileSystem, path: str, image_column: str | None
) -> Iterator[Member]:
    with fs.open(path, "rb") as stream:
        file = pq.ParquetFile(stream)
        column = image_column_of(file.schema_arrow, path, image_column)
        names: Iterator[str | None] = iter(lambda: None, 0)
        if _stores_paths(file.schema_arrow.field(column).type):
            leaf = f"{column}.path"
            names = (
                value["path"]
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[leaf])
                for value in (found or {"path": None} for found in batch[column].to_pylist())
            )
        for row, name in zip(range(file.metadata.num_rows), names, strict=False):
            tail = f"/{name}" if name else ""
            yield Member(f"row={row:09}/{column}{tail}", name or "", None)


def image_columns(schema: pa.Schema) -> list[str]:
    """Return what can hold images: columns of bytes, and Hugging Face's of bytes and path."""
    return [field.name for field in schema if _leaf(field.type) is not None]


def image_column_of(schema: pa.Schema, path: str, wanted: str | None) -> str:
    """Return the column of images; raises SourceError unless there is exactly one to take."""
    found = image_columns(schema)
    if wanted is not None and wanted not in found:
        raise SourceError(
            f"image_column is {wanted!r}, which is no column of images of {path}; there are "
            f"{', '.join(found) or 'none'}"
        )
    if wanted is None and len(found) != 1:
        has = f"has several columns of images ({', '.join(found)}): name one by image_column"
        lacks = f"has no column `uri` and none of images; it has {', '.join(schema.names)}"
        raise SourceError(f"{path} {has if found else lacks}")
    column = wanted or found[0]
    if "/" in column:
        raise SourceError(f"{path}: a column of images must have no slash in its name: {column!r}")
    return column


def _leaf(kind: pa.DataType) -> str | None:
    """Return what of a column holds the bytes: all of it (""), a field of a struct, nothing."""
    if _is_binary(kind):
        return ""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "bytes" if _is_binary(kind.field("bytes").type) else None
    return None


def _stores_paths(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_cells(
    fs: fsspec.AbstractFileSystem, path: str, cells: Sequence[Cell], kept_bytes: int
) -> list[bytes | Exception]:
    """Return the bytes of images of one Parquet file.

    The row group read last is kept, and earlier ones that with it weigh at most `kept_bytes`.
    """
    try:
        content = str(fs.ukey(path))  # changes with size, time and etag of the file
    except Exception as error:  # of the store
        return [error] * len(cells)
    results: list[bytes | Exception] = [b""] * len(cells)
    for index in sorted(
        range(len(cells)), key=lambda index: (cells[index].column, cells[index].row)
    ):
        results[index] = _read_cell(fs, path, content, cells[index], kept_bytes)
    return results


def _read_cell(
    fs: fsspec.AbstractFileSystem, path: str, content: str, cell: Cell, kept_bytes: int
) -> bytes | Exception:
    try:
        ends = _row_group_ends(fs, path, content)
        group = next((number for number, end in enumerate(ends) if cell.row < end), None)
        if group is None:
            return FileNotFoundError(f"the file has {ends[-1] if ends else 0} rows")
        first = ends[group - 1] if group else 0
        images = _row_groups.find(_RowGroup(fs, path, content, group, cell.column), kept_bytes)
        value: bytes | None = images[cell.row - first].as_py()
    except Exception as error:  # of the store, or of a damaged file
        return error
    if value is None:
        return ValueError("the row holds no image")
    return value


@lru_cache(maxsize=256)
def _row_group_ends(fs: fsspec.AbstractFileSystem, path: str, content: str) -> tuple[int, ...]:
    with fs.open(path, "rb") as stream:
        metadata = pq.ParquetFile(stream).metadata
    groups = range(metadata.num_row_groups)
    return tuple(accumulate(metadata.row_group(number).num_rows for number in groups))


@dataclass(frozen=True)
class _RowGroup:
    """One column of images of a row group."""

    fs: fsspec.AbstractFileSystem
    path: str
    content: str
    number: int
    column: str


class _RowGroups:
    """The row groups that were used last."""

    def __init__(self) -> None:
        self._kept: dict[_RowGroup, pa.ChunkedArray] = {}  # the one used last is the last
        self._lock = Lock()

    def find(self, group: _RowGroup, kept_bytes: int) -> pa.ChunkedArray:
        """Return the images of a row group, read if it is not kept."""
        with self._lock:
            images = self._kept.pop(group, None)
            if images is not None:
                self._kept[group] = images
                return images
        images = self._read(group, kept_bytes)
        with self._lock:
            self._kept[group] = images
        return images

    def _read(self, group: _RowGroup, kept_bytes: int) -> pa.ChunkedArray:
        column = group.column
        with group.fs.open(group.path, "rb") as stream:
            file = pq.ParquetFile(stream)
            leaf = _leaf(file.schema_arrow.field(column).type)
            if leaf is None:
                raise ValueError(f"column {column!r} holds no images")
            name = f"{column}.{leaf}" if leaf else column
            chunks = file.metadata.row_group(group.number)
            size = sum(
                chunks.column(number).total_uncompressed_size
                for number in range(chunks.num_columns)
                if chunks.column(number).path_in_schema == name
            )
            if size > _MAX_ROW_GROUP_BYTES:
                raise ValueError(
                    f"row group {group.number} has {size} bytes of images; at most "
                    f"{_MAX_ROW_GROUP_BYTES} are read at once: write the file in smaller row groups"
                )
            self._make_room(kept_bytes - size)
            images = file.read_row_group(group.number, columns=[name])[column]
        return pc.struct_field(images, leaf) if leaf else images

    def _make_room(self, room: int) -> None:
        """Forget what was used longest ago, until the rest weighs no more than `room`."""
        with self._lock:
            weight = sum(images.nbytes for images in self._kept.values())
            while self._kept and weight > room:
                weight -= self._kept.pop(next(iter(self._kept))).nbytes


_row_groups: Final = _RowGroups()  # of this process
