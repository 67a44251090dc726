"""A local file that is there whole or not at all."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from pipeline.storage import describe
from schemas.errors import OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a draft that takes the place of `path` once it is complete, and vanishes otherwise.

    A link stays one, to the new file; a device or a pipe is written into. Raises OutputError when
    it cannot be written.
    """
    refuse_unwritable(path)
    target = _linked(path)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.draft")
    place = path if _is_stream(path) else draft
    try:
        with open(place, "w", encoding="utf-8", newline="\n") as file:
            yield file
        if place is draft:
            os.replace(draft, target)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {describe(error)}") from None
    finally:
        with suppress(OSError):
            draft.unlink()


def refuse_unwritable(path: Path) -> None:
    """Raise OutputError where `whole_file` would, before the work for the file is done."""
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a directory; name a file")
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return
        folder = _linked(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {describe(error)}") from None


def _is_stream(path: Path) -> bool:
    """Say whether `path` is a device or a pipe, which nothing may take the place of."""
    return path.exists() and not path.is_file()


def _linked(path: Path) -> Path:
    """Return what `path` is a link to, or else itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path
