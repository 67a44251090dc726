"""Fetch and decode: from a URI to a resized RGB image, or to a quarantined row."""

import hashlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import pyarrow as pa

from pipeline.decode import BadImage, DecodeSettings, Picture
from pipeline.decoder_process import decoder_of_this_process
from pipeline.fetching import FetchSettings, Request, fetch, fetch_ahead, in_groups, is_transient
from pipeline.meter import timed
from pipeline.stages.rows import Row, quarantine
from pipeline.storage import describe
from pipeline.web import WEB_SCHEMES, RefusedError
from schemas.annotate_config import SourceSettings
from schemas.annotation import DECODED, LABELLED, table_from_rows
from schemas.errors import StoreUnavailableError

FETCH: Final = "fetch"  # the step; the rest of the stage is decoding

# So many images of whole groups, one after the other, and it is the store that fails.
_FAILED_IN_A_ROW: Final = 8

# Images decoded into one table: as many as keep its pixels small, and what a table costs, too.
_TABLE_BYTES: Final = 16 * 2**20
_LEAST_ROWS, _MOST_ROWS = 8, 256

# What reads groups of images, in their order.
_Read = Callable[[Sequence[Sequence[Request]]], Iterator[list[bytes | Exception]]]

# What a store raised -> code of the quarantined row.
_FETCH_CODES: Final = {
    FileNotFoundError: "not_found",
    socket.gaierror: "not_found",  # the host
    PermissionError: "access_denied",
    RefusedError: "refused",
}


def source_settings(config: SourceSettings) -> SourceSettings:
    """Return what of a larger config this stage needs: no more of it should travel to workers."""
    return SourceSettings(**{name: getattr(config, name) for name in SourceSettings.model_fields})


@dataclass(frozen=True)
class FetchDecode:
    """INVENTORY -> DECODED: read the bytes, decode within limits, resize for the proposer."""

    name: ClassVar[str] = "decode"
    schema: ClassVar[pa.Schema] = DECODED

    short_edge: int
    long_edge: int
    source: SourceSettings

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return one row per image, quarantined where it cannot be fetched or decoded.

        Raises StoreUnavailableError where a store gives none of several images.
        """
        rows = self._rows(images, lambda groups: map(self._fetch, groups))
        return table_from_rows([row for few in rows for row in few], DECODED)

    def each(self, images: pa.Table) -> Iterator[pa.Table]:
        """Yield what a call returns, in tables; images are read while others are decoded."""
        rows: list[Row] = []
        for few in self._rows(images, lambda groups: fetch_ahead(groups, self._fetch_settings)):
            rows += few
            if _is_table(rows):
                yield table_from_rows(rows, DECODED)
                rows = []
        if rows:
            yield table_from_rows(rows, DECODED)

    def _rows(self, images: pa.Table, read: _Read) -> Iterator[list[Row]]:
        """Yield decoded rows, a few at a time: the files of many may not fit into memory."""
        listed = [self._checked(row) for row in images.to_pylist()]
        contents = _contents([request for _, request in listed if request is not None], read)
        for start in range(0, len(listed), _LEAST_ROWS):
            few = listed[start : start + _LEAST_ROWS]
            yield self._decoded(
                [
                    (row, None) if request is None else self._received(row, next(contents))
                    for row, request in few
                ]
            )

    def _checked(self, row: Row) -> tuple[Row, Request | None]:
        """Return the row without what only asks for the image, and that; None: refused unread."""
        request = Request(row["uri"], row.pop("signature"), row.pop("size_bytes"))
        if (request.size_bytes or 0) > self.source.max_image_bytes:
            return self._too_many_bytes(row, request.size_bytes), None
        return row, request

    def _fetch(self, group: Sequence[Request]) -> list[bytes | Exception]:
        return fetch(group, self._fetch_settings)

    @property
    def _fetch_settings(self) -> FetchSettings:
        return FetchSettings.of(self.source, self.source.max_image_bytes)

    @property
    def _decode_settings(self) -> DecodeSettings:
        return DecodeSettings(
            short_edge=self.short_edge,
            long_edge=self.long_edge,
            max_pixels=self.source.max_image_pixels,
            max_frames=self.source.max_image_frames,
            max_seconds=self.source.max_decode_seconds,
            max_mb=self.source.max_decode_mb,
            jpeg_draft=self.source.jpeg_draft,
        )

    def _too_many_bytes(self, row: Row, size_bytes: int | None) -> Row:
        message = f"{size_bytes} bytes are over the limit of {self.source.max_image_bytes}"
        return quarantine(row, "fetch", "too_many_bytes", message)

    def _received(self, row: Row, data: bytes | Exception) -> tuple[Row, bytes | None]:
        """Return the row and the file that it is decoded from; None: quarantined."""
        if isinstance(data, Exception):
            return quarantine(row, "fetch", _fetch_code(data), describe(data)), None
        if len(data) > self.source.max_image_bytes:
            return self._too_many_bytes(row, len(data)), None
        return {**row, "bytes_sha256": hashlib.sha256(data).hexdigest()}, data

    def _decoded(self, received: Sequence[tuple[Row, bytes | None]]) -> list[Row]:
        with timed(self.name, in_child=True):
            decode = decoder_of_this_process(self._decode_settings).each
            found = [*decode([file for _, file in received if file is not None])]
        pictures = iter(found)
        return [row if file is None else _drawn(row, next(pictures)) for row, file in received]


def _drawn(row: Row, found: Picture | BadImage) -> Row:
    if isinstance(found, BadImage):
        return quarantine(row, "decode", found.code, str(found))
    height, width, _ = found.pixels_HW3.shape
    return {
        **row,
        **vars(found.origin),
        "status": LABELLED,
        "image": found.pixels_HW3.data,
        "image_height": height,
        "image_width": width,
    }


def _is_table(rows: Sequence[Row]) -> bool:
    """Say whether rows make a table: of 8, 16, 32, ..., so that batches leave no rest."""
    if (len(rows) // _LEAST_ROWS).bit_count() != 1:
        return False
    size = sum(row["image"].nbytes for row in rows if row.get("image") is not None)
    return len(rows) >= _MOST_ROWS or 2 * size > _TABLE_BYTES


def _contents(requests: Sequence[Request], read: _Read) -> Iterator[bytes | Exception]:
    """Yield what came for each request, group by group: not all need fit into memory.

    Raises StoreUnavailableError where nothing comes any more.
    """
    groups = list(in_groups(requests))
    found = read(groups)
    failed: list[tuple[Request, bytes | Exception]] = []  # since anything came
    for group in groups:
        with timed(FETCH) as section:
            results = next(found)
            section.count(len(group), sum(len(data) for data in results if isinstance(data, bytes)))
        lost = all(map(is_transient, results))
        failed = [*failed, *zip(group, results, strict=True)] if lost else []
        if len(failed) >= _FAILED_IN_A_ROW or group is groups[-1]:
            _check_available(failed)
        yield from results


def _fetch_code(error: Exception) -> str:
    if is_transient(error):
        return "unavailable"
    cause = getattr(error, "os_error", error)
    return next(
        (code for kind, code in _FETCH_CODES.items() if isinstance(cause, kind)), "unreadable"
    )


def _check_available(failed: Sequence[tuple[Request, bytes | Exception]]) -> None:
    """Raise unless it is so few images, or such places, that the files may be to blame."""
    # Each web server is a place of its own; a dead one is no reason to stop.
    ours = [one for one in failed if one[0].uri.partition("://")[0] not in WEB_SCHEMES]
    if len(failed) > 1 and ours:
        (first, reason), *_ = ours
        assert isinstance(reason, Exception)
        raise StoreUnavailableError(
            f"none of {len(failed)} images could be fetched, the first was {first.uri}: "
            f"{describe(reason)}; what is done is kept, run again when the store answers"
        )
