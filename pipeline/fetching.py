"""Bytes of images from their stores: how much at a time, what is asked for again, what is not."""

import errno
import os
import random
import socket
import ssl
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.packed import Cell, Range, read_cells, split_member
from pipeline.storage import join_signature, open_store
from pipeline.web import RefusedError, WebAccess, WebStore
from schemas.config import RemoteSettings
from schemas.errors import SegmillError, SourceError

_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 20.0
# Fetched at once: a store's latency is shared by so many images, if they fit into memory.
IN_FLIGHT: Final = 32
_IN_FLIGHT_BYTES: Final = 64 * 2**20
_GUESSED_BYTES: Final = 4 * 2**20  # of an image whose list knows no size
# Of one file, and the same at every attempt.
_FINAL_ERRNOS: Final = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL})
# Credentials of ours that ran out: the files are not to blame.
_EXPIRED: Final = frozenset({"ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired"})


@dataclass(frozen=True)
class Request:
    """One image to fetch: its URI, what signs that, and its size as listed."""

    uri: str
    signature: str | None = None
    size_bytes: int | None = None

    @property
    def expected_bytes(self) -> int:
        """How much to ask for at first."""
        return _GUESSED_BYTES if self.size_bytes is None else self.size_bytes


@dataclass(frozen=True)
class FetchSettings:
    """What one image may weigh, how often it is asked for, and the rules for web servers."""

    max_bytes: int
    attempts: int
    web: WebAccess
    kept_bytes: int = 0  # of row groups of Parquet files, for images asked for in any order

    @classmethod
    def of(cls, settings: RemoteSettings, max_bytes: int) -> Self:
        """Return how the settings have images fetched."""
        return cls(max_bytes, settings.fetch_attempts, WebAccess.of(settings))


class ShortBodyError(ConnectionError):
    """Fewer bytes came than were listed."""


def in_groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Yield the requests in order, as many at a time as may be under way together."""
    group: list[Request] = []
    size = 0
    for request in requests:
        full = len(group) == IN_FLIGHT or size + request.expected_bytes > _IN_FLIGHT_BYTES
        if group and full:
            yield group
            group, size = [], 0
        group.append(request)
        size += request.expected_bytes
    if group:
        yield group


def fetch(requests: Sequence[Request], settings: FetchSettings) -> list[bytes | Exception]:
    """Read files concurrently and return their bytes, or in their place why there are none.

    What is over `max_bytes` comes as its first `max_bytes` + 1. Transient failures are tried again
    after growing pauses.
    """
    results: list[bytes | Exception] = [b""] * len(requests)
    pending = list(range(len(requests)))
    for attempt in range(settings.attempts):
        if attempt:
            # Spread, so that many workers do not come back to a throttling store all at once.
            pause = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2**attempt)
            time.sleep(pause * random.uniform(0.5, 1.0))
        found = _fetch_once([requests[index] for index in pending], settings)
        for index, result in zip(pending, found, strict=True):
            results[index] = result
        pending = [index for index in pending if is_transient(results[index])]
        if not pending:
            break
    return results


def fetch_ahead(
    groups: Iterable[Sequence[Request]], settings: FetchSettings
) -> Iterator[list[bytes | Exception]]:
    """Yield what `fetch` returns for each group; the next group is read meanwhile."""
    coming: Future[list[bytes | Exception]] | None = None
    for group in groups:
        before, coming = coming, _reader().submit(fetch, group, settings)
        if before is not None:
            yield before.result()
    if coming is not None:
        yield coming.result()


@cache
def _reader() -> ThreadPoolExecutor:
    # One for the process: fsspec opens a store anew, with its connections, for every thread.
    return ThreadPoolExecutor(1, "reader")


def is_transient(result: bytes | Exception) -> bool:
    """Say whether a result is a failure that may be gone at the next attempt."""
    if isinstance(result, bytes):
        return False
    error = getattr(result, "os_error", result)  # aiohttp wraps what connecting raised
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):  # of S3
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        expired = response.get("Error", {}).get("Code") in _EXPIRED
        return expired or status in (408, 429) or status >= 500
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    final = (
        FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, RefusedError,
        SegmillError, ValueError, ssl.SSLError,
    )  # fmt: skip
    return not isinstance(error, final) and getattr(error, "errno", None) not in _FINAL_ERRNOS


@dataclass(frozen=True)
class _Place:
    """Where the bytes of an image are."""

    fs: fsspec.AbstractFileSystem
    path: str
    where: Range | Cell

    @property
    def store(self) -> tuple[int, str]:
        """What one request is for: ranges of a whole store, cells of one Parquet file."""
        return id(self.fs), self.path if isinstance(self.where, Cell) else ""


def _locate(request: Request, settings: FetchSettings) -> _Place | None:
    """Return what to read first, None where nothing is there to be read; raises what is final."""
    if request.size_bytes == 0:
        return None  # S3 refuses to read the first bytes of nothing
    file, where = split_member(request.uri)
    fs, path = open_store(join_signature(file, request.signature), SourceError, settings.web)
    if isinstance(fs, LocalFileSystem):
        _check_regular(path)
    if where is None:
        where = Range(0, request.expected_bytes + 1)
    elif isinstance(fs, WebStore):
        raise RefusedError("packed files are read from disks and stores, not from the web")
    if isinstance(where, Range):
        if where.start == where.stop:
            return None
        where = Range(where.start, min(where.stop, where.start + settings.max_bytes + 1))
    return _Place(fs, path, where)


def _fetch_once(requests: Sequence[Request], settings: FetchSettings) -> list[bytes | Exception]:
    results: list[bytes | Exception] = [b""] * len(requests)
    by_store: dict[tuple[int, str], list[tuple[int, _Place]]] = {}
    for index, request in enumerate(requests):
        try:
            place = _locate(request, settings)
        except (SegmillError, OSError, ValueError) as error:
            results[index] = error
        else:
            if place is not None:
                by_store.setdefault(place.store, []).append((index, place))
    for places in by_store.values():
        fs, path = places[0][1].fs, places[0][1].path
        cells = [place.where for _, place in places if isinstance(place.where, Cell)]
        if cells:
            read = read_cells(fs, path, cells, settings.kept_bytes)
            for (index, _), result in zip(places, read, strict=True):
                results[index] = result
            continue
        ranges = [place.where for _, place in places if isinstance(place.where, Range)]
        read = _read(fs, [place.path for _, place in places], ranges)
        for (index, place), where, result in zip(places, ranges, read, strict=True):
            results[index] = _whole(place, (where, result), requests[index], settings)
    return results


def _whole(
    place: _Place,
    first: tuple[Range, bytes | Exception],
    request: Request,
    settings: FetchSettings,
) -> bytes | Exception:
    """Return a result complete: the rest of a file that is larger than expected, if allowed."""
    read, result = first
    listed = request.size_bytes or 0
    if read.start:  # a member of a tar: there is a header before it
        listed = read.stop - read.start
    elif isinstance(result, bytes) and len(result) == read.stop <= settings.max_bytes:
        (result,) = _read(place.fs, [place.path], [Range(0, settings.max_bytes + 1)])
    if isinstance(result, bytes) and len(result) < listed:
        return ShortBodyError(f"{len(result)} of the listed {listed} bytes came")
    return result


def _read(
    fs: fsspec.AbstractFileSystem, paths: list[str], places: list[Range]
) -> list[bytes | Exception]:
    try:
        # Not fs.cat: it expands * and [ in file names.
        starts, stops = [place.start for place in places], [place.stop for place in places]
        results = fs.cat_ranges(paths, starts, stops, on_error="return")
    except Exception as error:  # of the store as a whole
        return [error] * len(paths)
    return [b"" if _is_empty(result) else result for result in results]


def _is_empty(result: Any) -> bool:
    """Say whether S3 refused to read the first bytes because there are none."""
    response = getattr(getattr(result, "__cause__", None), "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "InvalidRange"


def _check_regular(path: str) -> None:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise RefusedError("it is no regular file")  # a pipe could keep us waiting for ever
