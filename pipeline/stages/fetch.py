"""Fetch and decode: from a URI to a resized RGB image, or to a quarantined row."""

import hashlib
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import pyarrow as pa

from pipeline.decode import BadImage, DecodeSettings
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
        (decoded,) = self._decoded([images], lambda groups: map(self._fetch, groups))
        return decoded

    def each(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield what a call returns for each table; images are read while others are decoded."""
        yield from self._decoded(tables, lambda groups: fetch_ahead(groups, self._fetch_settings))

    def _decoded(self, tables: Iterable[pa.Table], read: _Read) -> Iterator[pa.Table]:
        batches = [[self._checked(row) for row in table.to_pylist()] for table in tables]
        requests = [request for batch in batches for _, request in batch if request is not None]
        contents = _contents(requests, read)
        for batch in batches:
            decoded = [
                row if request is None else self._decode(row, next(contents))
                for row, request in batch
            ]
            yield table_from_rows(decoded, DECODED)

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

    def _decode(self, row: Row, data: bytes | Exception) -> Row:
        if isinstance(data, Exception):
            return quarantine(row, "fetch", _fetch_code(data), describe(data))
        if len(data) > self.source.max_image_bytes:
            return self._too_many_bytes(row, len(data))
        row["bytes_sha256"] = hashlib.sha256(data).hexdigest()
        try:
            with timed(self.name, in_child=True):
                picture = decoder_of_this_process(self._decode_settings)(data)
        except BadImage as error:
            return quarantine(row, "decode", error.code, str(error))
        height, width, _ = picture.pixels_HW3.shape
        return {
            **row,
            "height": picture.origin.height,
            "width": picture.origin.width,
            "exif_orientation": picture.origin.exif_orientation,
            "frames": picture.origin.frames,
            "status": LABELLED,
            "image": picture.pixels_HW3.data,
            "image_height": height,
            "image_width": width,
        }


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
