"""Files of a dataset, on a local disk or in an object store: whole or absent, retried, listed.

Paths are relative to the dataset. Every failure is an OutputError of one line.
"""

import errno
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from tempfile import gettempdir
from typing import Any, BinaryIO, Final, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.storage import open_store, store_errors
from pipeline.walking import files_below
from schemas.errors import OutputError

DRAFT_SUFFIX: Final = ".draft"

_ATTEMPTS: Final = 6
_LONGEST_WAIT_S: Final = 10.0
# Answers, not troubles: asking again would bring the same. 22 is what s3fs makes of a refused
# request that is none of the others (a wrong bucket, a failed precondition).
_FINAL: Final = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError)
_FINAL_NUMBERS: Final = (errno.EINVAL, errno.EISDIR, errno.ENOSPC, errno.EDQUOT)
_THREADS: Final = 16
_AHEAD_BYTES: Final = 2**16

T = TypeVar("T")


def read_bytes(dataset: str, path: str) -> bytes:
    """Return one file; FileNotFoundError where there is none, OutputError for other failures."""
    fs, root = open_store(dataset, OutputError)
    with _errors("read", dataset, FileNotFoundError):
        data: bytes = _retried(fs, lambda: fs.cat_file(f"{root}/{path}"))
    return data


def read_with(dataset: str, path: str, read: Callable[[BinaryIO], T]) -> T:
    """Return what `read` makes of one file, opened; it may be asked to read it again."""
    fs, root = open_store(dataset, OutputError)

    def attempt() -> T:
        with open_parts(fs, f"{root}/{path}") as stream:
            return read(stream)

    with _errors(f"read {path} of", dataset):
        return _retried(fs, attempt)


def open_parts(
    fs: fsspec.AbstractFileSystem, path: str, ahead_bytes: int = _AHEAD_BYTES
) -> BinaryIO:
    """Open a file to read parts of it, each in one request that reads a little further.

    Of themselves stores read megabytes further: S3 50 MiB, more than all that is asked for.
    """
    opened: BinaryIO = fs.open(path, "rb", block_size=ahead_bytes, cache_type="readahead")
    return opened


def write_bytes(dataset: str, path: str, data: bytes) -> None:
    """Write one file whole, in place of what was there."""
    fs, root = open_store(dataset, OutputError)
    target = f"{root}/{path}"
    with _errors("write to", dataset):
        if isinstance(fs, LocalFileSystem):
            with _draft(target, data) as draft:
                os.replace(draft, target)
        else:
            _retried(fs, lambda: fs.pipe_file(target, data))


@contextmanager
def open_whole(dataset: str, path: str) -> Iterator[BinaryIO]:
    """Open one file to be written bit by bit; it takes its place once the block has ended well.

    An object store gets it from a temporary file of this machine, for what is uploaded in parts
    could otherwise be completed half-written.
    """
    fs, root = open_store(dataset, OutputError)
    target = f"{root}/{path}"
    is_local = isinstance(fs, LocalFileSystem)
    place = target if is_local else os.path.join(gettempdir(), os.path.basename(path))
    draft = f"{place}.{uuid.uuid4().hex}{DRAFT_SUFFIX}"
    with _errors("write to", dataset):
        os.makedirs(os.path.dirname(draft), exist_ok=True)
        file = open(draft, "xb")  # noqa: SIM115  # what the block raises is no error of the store
    try:
        with file:
            yield file
            with _errors("write to", dataset):
                file.flush()
                os.fsync(file.fileno())
        with _errors("write to", dataset):
            if is_local:
                os.replace(draft, target)
            else:
                _retried(fs, lambda: fs.put_file(draft, target))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def create_bytes(dataset: str, path: str, data: bytes) -> bool:
    """Write one file whole unless it exists; say whether it now holds `data`.

    On S3 this is a conditional put. One whose answer was lost may have been carried out: the file
    then exists, with exactly this content, which must therefore be the writer's own.
    """
    fs, root = open_store(dataset, OutputError)
    target = f"{root}/{path}"
    with _errors("write to", dataset):
        try:
            if isinstance(fs, LocalFileSystem):
                _link(target, data)
            else:
                _retried(fs, lambda: fs.pipe_file(target, data, mode="create"))
        except OSError as error:
            if not _says_that_it_exists(error):
                raise
            return read_bytes(dataset, path) == data
    return True


def _says_that_it_exists(error: OSError) -> bool:
    """Say whether a store refused to create a file because there is one."""
    if isinstance(error, FileExistsError):
        return True
    # s3fs knows this refusal by a field of the answer that AWS sends, and MinIO does not.
    response = getattr(error.__cause__, "response", None)
    refusal = response.get("Error", {}) if isinstance(response, dict) else {}
    return refusal.get("Code") in ("PreconditionFailed", "412")


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes, and time of the last change in seconds since 1970 where the store tells."""

    size_bytes: int
    changed: float | None


def list_files(dataset: str, folder: str) -> list[str]:
    """Return the paths of all files below a folder, sorted; none where there is no folder."""
    return list(list_facts(dataset, folder))


def list_facts(dataset: str, folder: str) -> dict[str, FileFacts]:
    """Return all files below a folder, by path in order; none where there is no folder."""
    fs, root = open_store(dataset, OutputError)
    top = f"{root}/{folder}"

    def find() -> dict[str, dict[str, Any]]:
        if isinstance(fs, LocalFileSystem):
            return {info["name"]: info for info in files_below(fs, top)}
        # One request for a thousand files, where a walk makes one for every folder.
        found: dict[str, dict[str, Any]] = fs.find(top, detail=True)
        return found

    with _errors("list", dataset):
        try:
            found = _retried(fs, find)
        except FileNotFoundError:
            return {}
    return {
        path.removeprefix(f"{root}/"): FileFacts(int(info["size"] or 0), _changed(info))
        for path, info in sorted(found.items())
    }


def _changed(info: Mapping[str, Any]) -> float | None:
    changed = info.get("mtime") or info.get("LastModified") or info.get("last_modified")
    return changed.timestamp() if isinstance(changed, datetime) else changed


def delete_files(dataset: str, paths: Sequence[str]) -> None:
    """Delete files; those that are gone already are no error."""
    fs, root = open_store(dataset, OutputError)

    def delete(path: str) -> None:
        with suppress(FileNotFoundError):
            _retried(fs, lambda: fs.rm_file(f"{root}/{path}"))
        if isinstance(fs, LocalFileSystem):
            folder = os.path.dirname(path)
            with suppress(OSError):  # the first that is not empty ends it
                while folder:
                    os.rmdir(f"{root}/{folder}")
                    folder = os.path.dirname(folder)

    with _errors("delete from", dataset):
        in_parallel(delete, paths)


def in_parallel(work: Callable[[str], T], paths: Sequence[str], threads: int = _THREADS) -> list[T]:
    """Apply `work` to every path in a few threads, for it waits for a store; keep the order."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, paths))


@contextmanager
def _errors(action: str, dataset: str, *let_through: type[Exception]) -> Iterator[None]:
    passed: list[Exception] = []
    with store_errors(action, dataset, OutputError):
        try:
            yield
        except let_through as error:
            passed.append(error)
    if passed:
        raise passed[0]


def _retried(fs: fsspec.AbstractFileSystem, request: Callable[[], T]) -> T:
    """Ask a store, and again with growing pauses while it is in trouble; a disk is asked once."""
    if isinstance(fs, LocalFileSystem):
        return request()
    return Retrying(
        retry=retry_if_exception(_is_trouble),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=_LONGEST_WAIT_S),
        reraise=True,
    )(request)


def _is_trouble(error: BaseException) -> bool:
    if not isinstance(error, Exception) or isinstance(error, _FINAL):
        return False
    return not (isinstance(error, OSError) and error.errno in _FINAL_NUMBERS)


def _link(target: str, data: bytes) -> None:
    with _draft(target, data) as draft:
        os.link(draft, target)  # unlike a rename, a link never replaces
    folder = os.open(os.path.dirname(target), os.O_RDONLY)
    try:
        os.fsync(folder)  # or the name might not outlive a power failure that its reader saw
    finally:
        os.close(folder)


@contextmanager
def _draft(target: str, data: bytes) -> Iterator[str]:
    """Write a draft beside `target`; what of it is left after the block vanishes."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    draft = f"{target}.{uuid.uuid4().hex}{DRAFT_SUFFIX}"
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:  # half a draft too: on a full disk it would take the last bytes
        with suppress(FileNotFoundError):
            os.unlink(draft)
