"""From a source (folder, glob, prefix, list) to the inventory: one row per image, no pixel read."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import (
    full_uri,
    hide_secrets,
    open_store,
    split_signature,
    store_errors,
    trust,
)
from pipeline.web import WebAccess, WebStore
from schemas.annotation import INVENTORY, image_id
from schemas.errors import SourceError

LIST_SUFFIXES: Final = (".txt", ".parquet")
_GLOB_CHARACTERS: Final = frozenset("*?[")
_MAX_WEB_LIST_BYTES: Final = 2**30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inventory:
    """The images to annotate (INVENTORY, in order of uri) and how many files were passed over."""

    images: pa.Table
    ignored: int  # files without an image's extension, broken links, names that are not text
    repeated: int  # further occurrences of a uri in a list


@dataclass(frozen=True)
class ListRules:
    """What a list of URIs may name: the rules for web servers, and whether it is trusted.

    One that is not may name places of its own kind and of kinds less ours: a list on this machine
    anything, one in a store stores and the web, one on the web the web.
    """

    web: WebAccess | None = None
    trusted: bool = False


def take_inventory(
    source: str, extensions: Sequence[str], rules: ListRules = ListRules()
) -> Inventory:
    """List the images of `source`: a folder or prefix, a glob, one file, or a list of URIs.

    A `.txt` list holds one URI per line, a `.parquet` list has a column `uri` (and may have
    `etag`). Extensions apply to folders and prefixes only. Raises SourceError when the source
    cannot be listed or holds no image.
    """
    if split_signature(source)[1]:
        raise SourceError(
            f"{hide_secrets(source)} carries a signature, and where the images came from is "
            "recorded; name such URLs in a list"
        )
    fs, path = open_store(source, SourceError, rules.web)
    with store_errors("read", source, SourceError):
        if isinstance(fs, WebStore):
            is_list = _is_list(fs, path)
            rows = _read_list(fs, path, source, rules) if is_list else [_row(path, None, None)]
            ignored = 0
        elif _is_list(fs, path) and fs.isfile(path):
            rows, ignored = _read_list(fs, path, source, rules), 0
        elif _GLOB_CHARACTERS & set(path) and not fs.exists(path):
            rows, ignored = _rows(fs, fs.glob(path, detail=True).values())
        elif fs.isfile(path):
            rows, ignored = _rows(fs, [fs.info(path)])
        else:
            rows, ignored = _list_prefix(fs, path, source, extensions)
    unique = {row["uri"]: row for row in rows}
    if not unique:
        hint = f"; {ignored} files have other extensions" if ignored else ""
        raise SourceError(f"{hide_secrets(source)} holds no images{hint}")
    ordered = [unique[uri] for uri in sorted(unique)]
    table = pa.Table.from_pylist(ordered, schema=INVENTORY)
    return Inventory(images=table, ignored=ignored, repeated=len(rows) - len(unique))


_Row = dict[str, Any]


def _list_prefix(
    fs: fsspec.AbstractFileSystem, path: str, source: str, extensions: Sequence[str]
) -> tuple[list[_Row], int]:
    found = fs.find(path, detail=True)
    if not found and not fs.exists(path):
        raise SourceError(f"cannot read {hide_secrets(source)}: it does not exist")
    wanted = {extension.lower().lstrip(".") for extension in extensions}
    takes_all = "*" in wanted
    infos = found.values()
    chosen = [info for info in infos if takes_all or _extension(info["name"]) in wanted]
    rows, unusable = _rows(fs, chosen)
    return rows, len(found) - len(chosen) + unusable


def _extension(path: str) -> str:
    return PurePosixPath(path).suffix.lower().lstrip(".")


def _rows(fs: fsspec.AbstractFileSystem, infos: Iterable[dict[str, Any]]) -> tuple[list[_Row], int]:
    rows: list[_Row] = []
    unusable = 0
    for listed in infos:
        uri = full_uri(fs, listed["name"])
        try:
            # A listing describes a link itself; asking for its path gives the file behind it.
            info = fs.info(listed["name"]) if listed.get("islink") else listed
        except OSError:  # it leads nowhere, in a circle, or where we may not look
            logger.warning("passed over a broken link: %r", uri)
            unusable += 1
            continue
        if info.get("type") != "file":
            continue
        if not _is_text(uri):
            logger.warning("passed over a file whose name is not UTF-8: %r", uri)
            unusable += 1
            continue
        size = info.get("size")
        rows.append(_row(uri, _etag(info), int(size) if size is not None else None))
    return rows, unusable


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


def _is_list(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    return _name(fs, path).endswith(LIST_SUFFIXES)


def _name(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return (urlsplit(path).path if isinstance(fs, WebStore) else path).lower()


def _open_list(fs: fsspec.AbstractFileSystem, path: str, source: str) -> BinaryIO:
    if not isinstance(fs, WebStore):
        opened: BinaryIO = fs.open(path, "rb")
        return opened
    data = fs.cat_file(path, end=_MAX_WEB_LIST_BYTES + 1)
    if len(data) > _MAX_WEB_LIST_BYTES:
        raise SourceError(f"{hide_secrets(source)} has over {_MAX_WEB_LIST_BYTES} bytes")
    return BytesIO(data)


def _read_list(
    fs: fsspec.AbstractFileSystem, path: str, source: str, rules: ListRules
) -> list[_Row]:
    checker = _ListChecker(source, trust(fs), rules)
    with _open_list(fs, path, source) as file:
        if _name(fs, path).endswith(".parquet"):
            return _parquet_rows(pq.read_table(file), source, checker)
        try:
            lines = file.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise SourceError(f"{hide_secrets(source)} is not UTF-8 text") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            rows.append(_row(checker.uri(entry, f"line {number}"), None, None))
    return rows


def _parquet_rows(table: pa.Table, source: str, checker: "_ListChecker") -> list[_Row]:
    if "uri" not in table.column_names:
        raise SourceError(
            f"{hide_secrets(source)} has no column `uri`; it has {', '.join(table.column_names)}"
        )
    uris = table["uri"].to_pylist()
    etags = table["etag"].to_pylist() if "etag" in table.column_names else [None] * len(uris)
    rows = []
    for number, (uri, etag) in enumerate(zip(uris, etags, strict=True)):
        if not isinstance(uri, str) or not uri:
            raise SourceError(f"{hide_secrets(source)}, row {number}: uri is {uri!r}, not text")
        if not isinstance(etag, str | None):
            raise SourceError(f"{hide_secrets(source)}, row {number}: etag is {etag!r}, not text")
        rows.append(_row(checker.uri(uri, f"row {number}"), etag, None))
    return rows


@dataclass(frozen=True)
class _ListChecker:
    """Holds the entries of one list to the rules."""

    source: str
    trust: int  # of where the list was read, see `storage.trust`
    rules: ListRules

    def uri(self, entry: str, where: str) -> str:
        """Return an entry's full URI; raises SourceError where it is none, or not allowed here."""
        try:
            fs, path = open_store(entry, SourceError, self.rules.web)
            if trust(fs) > self.trust and not self.rules.trusted:
                raise SourceError(
                    f"{hide_secrets(entry)} is nothing that a list from there may name, unless "
                    "trust_lists is on"
                )
        except SourceError as error:
            raise SourceError(f"{hide_secrets(self.source)}, {where}: {error}") from None
        return full_uri(fs, path)
