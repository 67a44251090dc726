"""Paths and URLs to fsspec file systems, with one clear line for everything that goes wrong."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import fsspec
from fsspec.core import split_protocol

from schemas.errors import SegmillError, SettingsError

# Other schemes of fsspec would work but were not tried; http(s) waits for address checks.
SCHEMES: Final = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "memory")

_USER_INFO: Final = re.compile(r"(\b[\w+.-]+://)[^\s/@]+@")
# A name that holds a question mark is a name; these parameters are what signed URLs carry.
_SIGNED_QUERY: Final = re.compile(
    r"(://[^\s?]+)\?[^\s'\"#]*(?:signature|token|credential|sig|secret|key)[^\s=]*=[^\s'\"#]*", re.I
)

logger = logging.getLogger(__name__)


def open_store(url: str, error: type[SettingsError]) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of `url` and the path in it.

    Endpoint and credentials are found the way s3fs and the AWS SDK find them: environment
    (AWS_ENDPOINT_URL, AWS_PROFILE, ...), profile files, instance role. Raises `error` for an
    unknown scheme, for credentials inside the URL, and for a scheme whose package is absent.
    """
    protocol, _ = split_protocol(url)
    if protocol is not None and protocol not in SCHEMES:
        raise error(
            f"scheme {protocol!r} of {hide_secrets(url)} is not supported; there are "
            f"{', '.join(SCHEMES)} and plain paths"
        )
    if protocol not in (None, "file") and "@" in urlsplit(url).netloc:
        raise error(f"{hide_secrets(url)} carries credentials; give them by environment or profile")
    if not url.strip():
        raise error("an empty path was given")
    target = url if protocol else os.path.abspath(os.path.expanduser(url))
    options: dict[str, Any] = {"use_listings_cache": False} if protocol in {"s3", "s3a"} else {}
    try:
        # Not url_to_fs: it takes "::" in a file name for a chain of file systems.
        fs = fsspec.filesystem(protocol or "file", **options)
    except ImportError as missing:
        raise error(f"{url} needs a package that is not installed: {missing}") from None
    return fs, str(fs._strip_protocol(target))


def full_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """Return the URI under which `path` is recorded, with its scheme."""
    return str(fs.unstrip_protocol(path))


def hide_secrets(text: str) -> str:
    """Return `text` with every URL in it bared of user information and of a signed query."""
    return _SIGNED_QUERY.sub(r"\1", _USER_INFO.sub(r"\1", text))


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
    if isinstance(cause, FileNotFoundError):
        return "it does not exist"
    if isinstance(cause, PermissionError):
        return f"access is denied ({_first_line(cause)})"
    if isinstance(cause, NotADirectoryError):
        return "a part of the path is a file, not a directory"
    if name in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return f"no usable credentials were found ({_first_line(cause)})"
    if name in {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionError"}:
        return f"the endpoint does not answer ({_first_line(cause)})"
    return f"{name}: {_first_line(cause)}"


def _first_line(cause: BaseException) -> str:
    text = str(cause).strip().splitlines()
    return hide_secrets(text[0]) if text else type(cause).__name__
