"""Bytes of images from their stores: how much at a time, what is asked for again, what is not."""

import errno
import os
import random
import socket
import ssl
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage import join_signature, open_store
from pipeline.web import RefusedError, WebAccess
from schemas.errors import SegmillError, SourceError

_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 20.0
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


class ShortBodyError(ConnectionError):
    """Fewer bytes came than were listed."""


def in_groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Yield the requests in order, as many at a time as may be in memory together."""
    group: list[Request] = []
    size = 0
    for request in requests:
        if group and size + request.expected_bytes > _IN_FLIGHT_BYTES:
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


def _fetch_once(requests: Sequence[Request], settings: FetchSettings) -> list[bytes | Exception]:
    results: list[bytes | Exception] = [b""] * len(requests)
    by_store: dict[int, tuple[fsspec.AbstractFileSystem, list[tuple[int, str]]]] = {}
    for index, request in enumerate(requests):
        if request.size_bytes == 0:
            continue  # S3 refuses to read the first bytes of nothing
        try:
            url = join_signature(request.uri, request.signature)
            fs, path = open_store(url, SourceError, settings.web)
            if isinstance(fs, LocalFileSystem):
                _check_regular(path)
        except (SegmillError, OSError, ValueError) as error:
            results[index] = error
        else:
            by_store.setdefault(id(fs), (fs, []))[1].append((index, path))
    for fs, places in by_store.values():
        most = [min(requests[i].expected_bytes, settings.max_bytes) + 1 for i, _ in places]
        read = _read(fs, [path for _, path in places], most)
        for (index, path), limit, result in zip(places, most, read, strict=True):
            results[index] = _whole(fs, path, (limit, result), requests[index], settings)
    return results


def _whole(
    fs: fsspec.AbstractFileSystem,
    path: str,
    first: tuple[int, bytes | Exception],
    request: Request,
    settings: FetchSettings,
) -> bytes | Exception:
    """Return a result complete: the rest of a file that is larger than expected, if allowed."""
    limit, result = first
    if isinstance(result, bytes) and len(result) == limit <= settings.max_bytes:
        (result,) = _read(fs, [path], [settings.max_bytes + 1])
    if isinstance(result, bytes) and len(result) < (request.size_bytes or 0):
        return ShortBodyError(f"{len(result)} of the listed {request.size_bytes} bytes came")
    return result


def _read(
    fs: fsspec.AbstractFileSystem, paths: list[str], most: list[int]
) -> list[bytes | Exception]:
    try:
        # Not fs.cat: it expands * and [ in file names.
        results = fs.cat_ranges(paths, [0] * len(paths), most, on_error="return")
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
