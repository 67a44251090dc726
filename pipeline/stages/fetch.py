"""Fetch and decode: from a URI to a resized RGB image, or to a quarantined row."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import fsspec
import pyarrow as pa

from pipeline.decode import BadImage, decode_image
from pipeline.resize import resize_image, resized_size
from pipeline.stages.rows import Row, quarantine
from pipeline.storage import describe, open_store
from schemas.annotation import DECODED, LABELLED, table_from_rows
from schemas.errors import SegmillError, SourceError

_FETCH_ATTEMPTS: Final = 3
_FETCH_BACKOFF_S: Final = 0.5


@dataclass(frozen=True)
class FetchDecode:
    """INVENTORY -> DECODED: read the bytes, decode within limits, resize for the proposer."""

    name: ClassVar[str] = "decode"
    schema: ClassVar[pa.Schema] = DECODED

    short_edge: int
    long_edge: int
    max_image_bytes: int
    max_image_pixels: int

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return one row per image, quarantined where it cannot be fetched or decoded."""
        rows = images.to_pylist()
        fetched = _fetch([row["uri"] for row in rows if not self._is_too_large(row)])
        decoded = [self._decode(row, fetched.get(row["uri"])) for row in rows]
        return table_from_rows(decoded, DECODED)

    def _is_too_large(self, row: Row) -> bool:
        return (row["size_bytes"] or 0) > self.max_image_bytes

    def _decode(self, row: Row, data: bytes | Exception | None) -> Row:
        size_bytes = row.pop("size_bytes")
        if isinstance(data, FileNotFoundError):
            return quarantine(row, "fetch", "not_found", "the file is gone since it was listed")
        if isinstance(data, PermissionError):
            return quarantine(row, "fetch", "access_denied", describe(data))
        if isinstance(data, Exception):
            return quarantine(row, "fetch", "unreadable", describe(data))
        if data is None or len(data) > self.max_image_bytes:
            found = size_bytes if data is None else len(data)
            message = f"{found} bytes are over the limit of {self.max_image_bytes}"
            return quarantine(row, "fetch", "too_many_bytes", message)
        row["bytes_sha256"] = hashlib.sha256(data).hexdigest()
        try:
            decoded = decode_image(data, self.max_image_pixels)
        except BadImage as error:
            return quarantine(row, "decode", error.code, str(error))
        width, height = decoded.image.size
        resized = resized_size((height, width), self.short_edge, self.long_edge)
        return {
            **row,
            "height": height,
            "width": width,
            "exif_orientation": decoded.exif_orientation,
            "status": LABELLED,
            "image": resize_image(decoded.image, resized).tobytes(),
            "image_height": resized[0],
            "image_width": resized[1],
        }


def _fetch(uris: Sequence[str]) -> dict[str, bytes | Exception]:
    """Read files, those of one store concurrently where it can; failures are values."""
    results: dict[str, bytes | Exception] = {}
    by_store: dict[int, tuple[fsspec.AbstractFileSystem, list[tuple[str, str]]]] = {}
    for uri in uris:
        try:
            fs, path = open_store(uri, SourceError)
        except SegmillError as error:
            results[uri] = error
            continue
        by_store.setdefault(id(fs), (fs, []))[1].append((uri, path))
    for fs, pairs in by_store.values():
        pending = pairs
        for attempt in range(_FETCH_ATTEMPTS):
            if attempt:
                time.sleep(_FETCH_BACKOFF_S * 2**attempt)
            paths = [path for _, path in pending]
            # Not fs.cat: it expands * and [ in file names.
            contents = fs.cat_ranges(paths, None, None, on_error="return")
            results.update({uri: data for (uri, _), data in zip(pending, contents, strict=True)})
            pending = [pair for pair in pending if _is_transient(results[pair[0]])]
            if not pending:
                break
    return results


def _is_transient(result: bytes | Exception) -> bool:
    final = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return isinstance(result, Exception) and not isinstance(result, final)
