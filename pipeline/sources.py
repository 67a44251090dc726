"""From a source to the inventory: one row per image, no pixel read.

A source is a folder, a prefix, a glob, one file, or a list of URIs; a tar or a Parquet file of
images stands for the images in it.
"""

import logging
import re
import tarfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO, TextIOWrapper
from itertools import chain, islice, takewhile
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate
from s3fs import S3FileSystem

from pipeline.packed import PACKED, PARQUET, image_columns, is_packed, members
from pipeline.secrets import hide_secrets
from pipeline.storage import (
    credentials,
    full_uri,
    open_store,
    split_signature,
    store_errors,
    trust,
)
from pipeline.walking import files_below
from pipeline.web import WEB_SCHEMES, WebAccess, WebStore
from schemas.annotate_config import IMAGE_EXTENSIONS
from schemas.annotation import INVENTORY, image_id
from schemas.errors import SourceError

LIST_SUFFIXES: Final = (".txt", ".parquet")
BATCH_ROWS: Final = 10_000
_NAMES_PER_PAGE: Final = 1000
_MAX_WEB_LIST_BYTES: Final = 2**30
_PACKED_AT_ONCE: Final = 8
_GLOB_CHARACTERS: Final = frozenset("*?[")

logger = logging.getLogger(__name__)

_Row = dict[str, Any]


@dataclass(frozen=True)
class ListRules:
    """What a list of URIs may name: the rules for web servers, and whether it is trusted.

    One that is not may name places of its own kind and of kinds less ours: a list on this machine
    anything, one in a store stores and the web, one on the web the web. `image_column` is the
    column of a Parquet file that holds images, None where there is only one such.
    """

    web: WebAccess | None = None
    trusted: bool = False
    image_column: str | None = None


@dataclass
class Listing:
    """The images of a source, read as a stream: INVENTORY tables of at most `BATCH_ROWS` rows.

    Rows come in the store's order, and a list may repeat a uri; the planner sorts that out.
    `ignored` counts what was passed over so far: files without an image's extension, broken links,
    names that are not text.
    """

    source: str
    extensions: Sequence[str]
    rules: ListRules = ListRules()
    ignored: int = 0

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the tables; raises SourceError when the source is unreadable or has no image."""
        self.ignored = 0
        found = False
        with store_errors("read", self.source, SourceError):
            rows = self._rows()
            while batch := list(islice(rows, BATCH_ROWS)):
                found = True
                yield pa.Table.from_pylist(batch, schema=INVENTORY)
        if not found:
            hint = f"; {self.ignored} files have other extensions" if self.ignored else ""
            raise SourceError(f"{hide_secrets(self.source)} holds no images{hint}")

    def _rows(self) -> Iterator[_Row]:
        if split_signature(self.source)[1]:
            raise SourceError(
                f"{hide_secrets(self.source)} carries a signature, and where the images came from "
                "is recorded; name such URLs in a list"
            )
        fs, path = open_store(self.source, SourceError, self.rules.web)
        on_the_web = isinstance(fs, WebStore)
        if _is_list(fs, path) and (on_the_web or fs.isfile(path)):
            named = _List(self.source, fs, path, self.rules)
            if named.holds_images:
                yield from self._files(fs, [fs.info(path)])
            else:
                yield from self._opened(named.rows())
        elif on_the_web:
            if is_packed(_name(fs, path)):
                raise SourceError(
                    f"{hide_secrets(self.source)}: packed files are read from disks and stores, "
                    "not from the web"
                )
            yield _row(path, None, None)
        elif _GLOB_CHARACTERS & set(path) and not fs.exists(path):
            yield from self._files(fs, _matching(fs, path))
        elif fs.isfile(path):
            yield from self._files(fs, [fs.info(path)])
        else:
            yield from self._prefix(fs, path)

    def _prefix(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[_Row]:
        found = walk(fs, path)
        first = next(found, None)
        if first is not None:
            yield from self._files(fs, self._wanted(chain([first], found)))
        elif not fs.exists(path):
            raise SourceError(f"cannot read {hide_secrets(self.source)}: it does not exist")

    def _wanted(self, infos: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        wanted = _extensions(self.extensions)
        for info in infos:
            if "*" in wanted or _extension(info["name"]) in wanted:
                yield info
            else:
                self.ignored += 1

    def _files(
        self, fs: fsspec.AbstractFileSystem, infos: Iterable[dict[str, Any]]
    ) -> Iterator[_Row]:
        return self._opened(self._rows_of(fs, infos))

    def _rows_of(
        self, fs: fsspec.AbstractFileSystem, infos: Iterable[dict[str, Any]]
    ) -> Iterator[_Row]:
        for listed in infos:
            uri = full_uri(fs, listed["name"])
            try:
                # A listing describes a link itself; asking for its path gives the file behind it.
                info = fs.info(listed["name"]) if listed.get("islink") else listed
            except OSError:  # it leads nowhere, in a circle, or where we may not look
                logger.warning("passed over a broken link: %r", uri)
                self.ignored += 1
                continue
            if info.get("type") != "file":
                continue
            if not _is_text(uri):
                logger.warning("passed over a file whose name is not UTF-8: %r", uri)
                self.ignored += 1
                continue
            size = info.get("size")
            yield _row(uri, _etag(info), int(size) if size is not None else None)

    def _opened(self, rows: Iterator[_Row]) -> Iterator[_Row]:
        """Yield the rows in order, of a packed file those of its images; a few are read at once."""
        wanted = _extensions(self.extensions) - PACKED
        unpack = partial(_unpack, wanted or set(IMAGE_EXTENSIONS), self.rules.image_column)
        with ThreadPoolExecutor(_PACKED_AT_ONCE) as pool:
            waiting: deque[Future[tuple[list[_Row], int]]] = deque()
            for row in rows:
                if is_packed(row["uri"]) and row["uri"].partition("://")[0] not in WEB_SCHEMES:
                    waiting.append(pool.submit(unpack, row))
                    yield from self._taken(waiting, _PACKED_AT_ONCE)
                else:
                    yield from self._taken(waiting, 0)
                    yield row
            yield from self._taken(waiting, 0)

    def _taken(self, waiting: "deque[Future[tuple[list[_Row], int]]]", most: int) -> Iterator[_Row]:
        while len(waiting) > most:
            rows, ignored = waiting.popleft().result()
            self.ignored += ignored
            yield from rows


def _unpack(wanted: set[str], image_column: str | None, row: _Row) -> tuple[list[_Row], int]:
    """Return the rows of a packed file's images, and how many other members it has.

    A file that cannot be read to its end stands for itself and for what is missing: as an image it
    will be quarantined, so that nothing is lost silently.
    """
    fs, path = open_store(row["uri"], SourceError)
    rows, ignored = [], 0
    with store_errors("read", row["uri"], SourceError):
        try:
            for member in members(fs, path, image_column):
                uri = f"{row['uri']}#{member.fragment}"
                has_name = bool(PurePosixPath(member.name).suffix)
                other = has_name and "*" not in wanted and _extension(member.name) not in wanted
                if other or not _is_text(uri):
                    ignored += 1
                else:
                    rows.append(_row(uri, row["etag"], member.size_bytes))
        except (tarfile.TarError, pa.ArrowException, EOFError) as error:
            logger.warning(
                "%s is damaged after %d images: %s", hide_secrets(path), len(rows), error
            )
            rows.append(row)
    return rows, ignored


def walk(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[dict[str, Any]]:
    """Yield the info of every file under `path`, deeply, without holding all of them.

    S3 is read page by page; elsewhere the largest directory is what is held at once.
    """
    if isinstance(fs, S3FileSystem):
        # A name that ends so is a marker that consoles make for a folder.
        yield from (info for info in _pages(fs, path, "") if not info["name"].endswith("/"))
        return
    yield from files_below(fs, path)


def _pages(fs: S3FileSystem, path: str, delimiter: str) -> Iterator[dict[str, Any]]:
    """Yield what S3 lists below a path, to the next delimiter of names, page by page."""
    bucket, key, _ = fs.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    listed = fs._iterdir(bucket, delimiter=delimiter, prefix=prefix)
    # A page at a time: every call into the loop of another thread costs more than a name.
    while infos := sync(fs.loop, _take, listed, _NAMES_PER_PAGE):
        yield from infos


def _matching(fs: fsspec.AbstractFileSystem, pattern: str) -> Iterator[dict[str, Any]]:
    """Yield the info of every file that a glob matches, as `walk` without holding all of them."""
    folder = _above_glob(fs, pattern)
    matches = re.compile(glob_translate(pattern)).match
    if "**" in pattern:
        found = walk(fs, folder)
    elif isinstance(fs, S3FileSystem) and folder:
        found = files_below(fs, folder, _leading(pattern), lambda path: _pages(fs, path, "/"))
    else:
        found = files_below(fs, folder, _leading(pattern))
    yield from (info for info in found if matches(info["name"]))


def _leading(pattern: str) -> Callable[[str], bool]:
    """Return what says of a folder whether what a glob without `**` matches may be below it."""
    parts = pattern.split("/")
    above = [re.compile(glob_translate("/".join(parts[:end]))) for end in range(len(parts))]

    def leads(folder: str) -> bool:
        depth = folder.count("/") + 1
        return depth < len(parts) and above[depth].match(folder) is not None

    return leads


def _above_glob(fs: fsspec.AbstractFileSystem, pattern: str) -> str:
    """Return the folder above what a glob matches."""
    folders = takewhile(lambda part: not _GLOB_CHARACTERS & set(part), pattern.split("/"))
    return "/".join(folders) or str(fs.root_marker)


async def _take(infos: AsyncIterator[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = []
    while len(taken) < most and (info := await anext(infos, None)) is not None:
        taken.append(info)
    return taken


def _extensions(extensions: Sequence[str]) -> set[str]:
    return {extension.lower().lstrip(".") for extension in extensions}


def _extension(path: str) -> str:
    return PurePosixPath(path).suffix.lower().lstrip(".")


def _row(full: str, etag: str | None, size_bytes: int | None) -> _Row:
    # Recorded without what signs it: that is secret, and another one at every signing.
    uri, signature = split_signature(full)
    return {
        "image_id": image_id(uri),
        "uri": uri,
        "etag": etag,
        "size_bytes": size_bytes,
        "signature": signature,
    }


def _is_text(uri: str) -> bool:
    try:
        uri.encode()
    except UnicodeEncodeError:  # surrogates of a file name in another encoding
        return False
    return True


def _etag(info: dict[str, Any]) -> str | None:
    """Return the store's own word for a content: an ETag, or time and size of a local file."""
    for key in ("ETag", "etag", "md5Hash"):
        if info.get(key):
            return str(info[key]).strip('"')
    if "mtime" in info:
        return f"{int(info['mtime'] * 1e6):x}-{info['size']:x}"
    return None


def source_place(source: str) -> str:
    """Return the place of a source as URIs of its images begin with it.

    Of a glob that is the folder above what is matched. A list has none: its URIs stand as they are.
    """
    try:
        fs, path = open_store(source, SourceError)
        if _GLOB_CHARACTERS & set(path) and not fs.exists(path):
            path = _above_glob(fs, path)
    except (SourceError, OSError):
        return source  # of the web, or of a store that does not answer
    return full_uri(fs, path)


def _is_list(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    return _name(fs, path).endswith(LIST_SUFFIXES)


def _name(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return (urlsplit(path).path if isinstance(fs, WebStore) else path).lower()


@dataclass(frozen=True)
class _List:
    """A list of URIs: text with one a line, or Parquet with a column `uri`, perhaps `etag`."""

    source: str
    fs: fsspec.AbstractFileSystem
    path: str
    rules: ListRules
    # The first `BATCH_ROWS` URIs with credentials: what those are, and where the entry stands.
    _credentials: dict[str, tuple[str, str]] = field(default_factory=dict, init=False)

    def rows(self) -> Iterator[_Row]:
        """Yield the rows; raises SourceError that names the line or row of a wrong entry."""
        with self._open() as file:
            if self._is_parquet:
                yield from self._parquet_rows(pq.ParquetFile(file))
                return
            try:
                for number, line in enumerate(TextIOWrapper(file, "utf-8-sig"), start=1):
                    entry = line.strip()
                    if entry and not entry.startswith("#"):
                        yield self._row(entry, None, f"line {number}")
            except UnicodeDecodeError:
                raise SourceError(f"{hide_secrets(self.source)} is not UTF-8 text") from None

    @property
    def holds_images(self) -> bool:
        """Whether this is a Parquet file of images, and not of URIs."""
        if not self._is_parquet or isinstance(self.fs, WebStore):
            return False
        with self._open() as file:
            schema = pq.ParquetFile(file).schema_arrow
        return "uri" not in schema.names and bool(image_columns(schema))

    @property
    def _is_parquet(self) -> bool:
        return _name(self.fs, self.path).endswith(PARQUET)

    def _open(self) -> BinaryIO:
        if not isinstance(self.fs, WebStore):
            opened: BinaryIO = self.fs.open(self.path, "rb")
            return opened
        data = self.fs.cat_file(self.path, end=_MAX_WEB_LIST_BYTES + 1)
        if len(data) > _MAX_WEB_LIST_BYTES:
            raise SourceError(f"{hide_secrets(self.source)} has over {_MAX_WEB_LIST_BYTES} bytes")
        return BytesIO(data)

    def _parquet_rows(self, file: pq.ParquetFile) -> Iterator[_Row]:
        names = file.schema_arrow.names
        shown = hide_secrets(self.source)
        if "uri" not in names:
            raise SourceError(f"{shown} has no column `uri`; it has {', '.join(names)}")
        columns = [name for name in ("uri", "etag") if name in names]
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for row in batch.to_pylist():
                uri, etag = row["uri"], row.get("etag")
                if not isinstance(uri, str) or not uri:
                    raise SourceError(f"{shown}, row {number}: uri is {uri!r}, not text")
                if not isinstance(etag, str | None):
                    raise SourceError(f"{shown}, row {number}: etag is {etag!r}, not text")
                yield self._row(uri, etag, f"row {number}")
                number += 1

    def _row(self, entry: str, etag: str | None, where: str) -> _Row:
        """Return the row of an entry; a local file gets its etag, which costs no request.

        Raises SourceError where it is no URI, or none that this list may name.
        """
        try:
            fs, path = open_store(entry, SourceError, self.rules.web)
            if trust(fs) > trust(self.fs) and not self.rules.trusted:
                raise SourceError(
                    f"{hide_secrets(entry)} is nothing that a list from there may name, unless "
                    "trust_lists is on"
                )
        except SourceError as error:
            raise SourceError(f"{hide_secrets(self.source)}, {where}: {error}") from None
        uri = full_uri(fs, path)
        if etag is None and isinstance(fs, LocalFileSystem) and fs.isfile(path):
            info = fs.info(path)
            return _row(uri, _etag(info), int(info["size"]))
        row = _row(uri, etag, None)
        self._refuse_twin(row, where)
        return row

    def _refuse_twin(self, row: _Row, where: str) -> None:
        """Raise SourceError where only credentials tell an entry from an earlier one.

        They are not recorded, so that two images would become one.
        """
        found = credentials(row["signature"])
        if not found:
            return
        if len(self._credentials) < BATCH_ROWS:
            self._credentials.setdefault(row["uri"], (found, where))
        before, first = self._credentials.get(row["uri"], (found, where))
        if before != found:
            names = ", ".join(pair.partition("=")[0] for pair in found.split("&"))
            raise SourceError(
                f"{hide_secrets(self.source)}, {where}: it differs from {first} only in {names}, "
                "which is taken for a secret and not recorded, so that both would be one image; "
                "name an image once, and give what tells images apart another name"
            )
