"""Paths and URLs to fsspec file systems, with one clear line for everything that goes wrong."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.secrets import SECRET_PARAMETERS, SECRET_WORDS, hide_secrets
from pipeline.web import WEB_SCHEMES, RefusedError, WebAccess, WebStore, web_store
from schemas.errors import SegmillError, SettingsError

__all__ = [
    "SCHEMES", "credentials", "describe", "first_line", "full_uri", "hide_secrets",
    "join_signature", "open_store", "split_signature", "store_errors", "trust",
]  # fmt: skip

# Other schemes of fsspec would work but were not tried. http(s) only where the rules are given.
SCHEMES: Final = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "memory")
# Here others write too while we look.
_BUCKETS: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs")

# Parameters of a URL that are secret whatever stands beside them.
_SECRET: Final = re.compile(rf"x-(amz|goog)-|.*({SECRET_WORDS})|(sig|{SECRET_PARAMETERS})$", re.I)
# What signs a URL, and what only beside that says how and until when: a new one at each signing.
_SIGNATURE: Final = re.compile(r"(.*signature|sig)$", re.I)
_SIGNING: Final = re.compile(
    r"x-(amz|goog)-|(.*signature|sig|se|st|sp|sv|sr|spr|skoid|sktid|skt|ske|sks|skv|expires|policy"
    r"|key-pair-id|awsaccesskeyid|googleaccessid)$",
    re.I,
)
logger = logging.getLogger(__name__)


def open_store(
    url: str, error: type[SettingsError], web: WebAccess | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of `url` and the path in it; http(s) only under the rules of `web`.

    Endpoint and credentials are found the way s3fs and the AWS SDK find them: environment
    (AWS_ENDPOINT_URL, AWS_PROFILE, ...), profile files, instance role. Raises `error` for an
    unknown scheme, for credentials inside the URL, for what is no URL, and for a scheme whose
    package is absent.
    """
    protocol, _ = split_protocol(url)
    known = SCHEMES if web is None else SCHEMES + WEB_SCHEMES
    if protocol is not None and protocol not in known:
        raise error(
            f"scheme {protocol!r} of {hide_secrets(url)} is not supported; there are "
            f"{', '.join(known)} and plain paths"
        )
    if protocol not in (None, "file") and "@" in _split(url, error).netloc:
        raise error(f"{hide_secrets(url)} carries credentials; give them by environment or profile")
    if not url.strip():
        raise error("an empty path was given")
    if web is not None and protocol in WEB_SCHEMES:
        return web_store(web), url
    target = url if protocol else os.path.abspath(os.path.expanduser(url))
    options: dict[str, Any] = {"use_listings_cache": False} if protocol in _BUCKETS else {}
    try:
        # Not url_to_fs: it takes "::" in a file name for a chain of file systems.
        fs = fsspec.filesystem(protocol or "file", **options)
    except ImportError as missing:
        raise error(f"{url} needs a package that is not installed: {missing}") from None
    return fs, str(fs._strip_protocol(target))


def _split(url: str, error: type[SettingsError]) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as cause:
        raise error(f"{hide_secrets(url)} is no URL: {cause}") from None


def full_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """Return the URI under which `path` is recorded, with its scheme."""
    return str(fs.unstrip_protocol(path))


def trust(fs: fsspec.AbstractFileSystem) -> int:
    """Return how far a place is ours: 2 this machine, 1 a store with our credentials, 0 the web."""
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return 2
    return 0 if isinstance(fs, WebStore) else 1


def split_signature(url: str) -> tuple[str, str | None]:
    """Return an http(s) URL without what signs it, and that part of its query, None if none.

    The first is the same whenever the URL is signed anew, and may be recorded.
    """
    parts = urlsplit(url)
    if parts.scheme not in WEB_SCHEMES or not parts.query:
        return url, None
    pairs = parts.query.split("&")
    is_signed = any(_SIGNATURE.match(_name(pair)) for pair in pairs)
    signing = [pair for pair in pairs if _is_secret(_name(pair), is_signed)]
    kept = "&".join(pair for pair in pairs if pair not in signing)
    return urlunsplit(parts._replace(query=kept)), "&".join(signing) or None


def _name(pair: str) -> str:
    return pair.partition("=")[0]


def _is_secret(name: str, is_signed: bool) -> bool:
    beside = is_signed and (_SIGNING.match(name) or name.lower() == "key")
    return bool(_SECRET.match(name) or beside)


def credentials(signature: str | None) -> str:
    """Return what of a signature is the same at every signing, such as tokens and passwords."""
    pairs = (signature or "").split("&")
    return "&".join(pair for pair in pairs if not _SIGNING.match(_name(pair)))


def join_signature(url: str, signature: str | None) -> str:
    """Return the signed URL again."""
    if signature is None:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, signature)))))


@contextmanager
def store_errors(action: str, url: str, error: type[SettingsError]) -> Iterator[None]:
    """Turn whatever a store raises inside the block into one line of type `error`."""
    try:
        yield
    except SegmillError:
        raise
    except Exception as cause:
        logger.debug("%s %s failed", action, hide_secrets(url), exc_info=True)
        raise error(f"cannot {action} {hide_secrets(url)}: {describe(cause)}") from None


def describe(cause: BaseException) -> str:
    """Return in one line what a store's exception means to a user."""
    name = type(cause).__name__
    reason = getattr(cause, "os_error", cause)  # aiohttp wraps what connecting raised
    if isinstance(reason, RefusedError | SegmillError):
        return first_line(reason)
    if isinstance(cause, FileNotFoundError):
        return "it does not exist"
    if isinstance(cause, TimeoutError):
        return "the store did not answer in time"
    if isinstance(cause, PermissionError):
        return f"access is denied ({first_line(cause)})"
    if isinstance(cause, NotADirectoryError):
        return "a part of the path is a file, not a directory"
    if name in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return f"no usable credentials were found ({first_line(cause)})"
    if name in {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionError"}:
        return f"the endpoint does not answer ({first_line(cause)})"
    return f"{name}: {first_line(cause)}"


def first_line(cause: BaseException) -> str:
    """Return the first line of an exception's words without secrets, or its type."""
    text = str(cause).strip().splitlines()
    return hide_secrets(text[0]) if text else type(cause).__name__
