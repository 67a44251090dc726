"""Weights in a store: fetched once per machine, kept under their hash, and checked by it.

A URL may carry the hash of what it names (`s3://bucket/proposer#sha256=...`). The driver gives
every URL its hash before any work starts, so that all machines of a run compute with the same
bytes, whatever becomes of the store meanwhile.
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pipeline.models.weights import sha256_of
from pipeline.storage import hide_secrets, open_store, store_errors
from pipeline.walking import files_below
from schemas.errors import ModelError

FOLDER_VARIABLE: Final = "SEGMILL_WEIGHTS_CACHE"
_FRAGMENT: Final = re.compile(r"#sha256=([0-9a-f]{64})$")


def pinned(weights: str | None) -> str | None:
    """Return the URL of weights with the hash of what it names now; what is no URL as it is.

    Raises ModelError when the store does not give them.
    """
    if not _is_url(weights) or _FRAGMENT.search(weights or ""):
        return weights
    with _fetched(str(weights)) as (fetched, found):
        _keep(fetched, found)
    return f"{weights}#sha256={found}"


def local_copy(weights: str | None) -> str | None:
    """Return the path on this machine of what a URL names; what is no URL as it is.

    Raises ModelError when the store does not give them, or gives others than the hash says.
    """
    if not _is_url(weights):
        return weights
    url, _, wanted = str(pinned(weights)).rpartition("#sha256=")
    folder = _folder() / wanted
    with _alone(wanted):
        if not folder.exists():
            with _fetched(url) as (fetched, found):
                if found != wanted:
                    raise ModelError(
                        f"the weights at {hide_secrets(url)} have sha256 {found}, not {wanted}: "
                        "they were changed; leave the hash away to take them as they are"
                    )
                _keep(fetched, found)
    (path,) = folder.iterdir()
    return str(path)


def _is_url(weights: str | None) -> bool:
    return weights is not None and "://" in weights


def _folder() -> Path:
    kept = os.environ.get(FOLDER_VARIABLE)
    folder = Path(kept) if kept else Path.home() / ".cache" / "segmill" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _fetched(url: str) -> Iterator[tuple[Path, str]]:
    """Give a copy of what is in the store, in a folder of its own, and its hash."""
    fs, path = open_store(url, ModelError)
    with tempfile.TemporaryDirectory(dir=_folder(), prefix=".fetch-") as directory:
        target = Path(directory) / "kept" / path.rstrip("/").rpartition("/")[2]
        target.parent.mkdir()
        with store_errors("fetch the weights at", url, ModelError):
            if fs.isfile(path):
                fs.get_file(path, str(target))
            elif fs.isdir(path):
                _fetch_folder(fs, path.rstrip("/"), target)
            else:
                raise ModelError(f"there are no weights at {hide_secrets(url)}")
        yield target, sha256_of(target)


def _fetch_folder(fs: Any, path: str, target: Path) -> None:
    """Copy every file below a folder; `fs.get` itself would take brackets in a name for a glob."""
    names = [info["name"] for info in files_below(fs, path)]
    files = {name: target / name.removeprefix(f"{path}/") for name in names}
    for name, copy in files.items():
        if not copy.is_relative_to(target) or ".." in copy.relative_to(target).parts:
            raise ModelError(f"{hide_secrets(name)} is not below {hide_secrets(path)}")
        copy.parent.mkdir(parents=True, exist_ok=True)
    fs.get(list(files), [str(copy) for copy in files.values()])


def _keep(fetched: Path, found: str) -> None:
    """Give a fetched copy its place, unless there is one already."""
    try:
        os.rename(fetched.parent, _folder() / found)
    except OSError:
        if not (_folder() / found).exists():
            raise


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold a lock of this machine, so that its workers fetch what they share once."""
    with (_folder() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
