"""A local file that is there whole or not at all."""

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

    Raises OutputError when it cannot be written.
    """
    refuse_unwritable(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
    try:
        with open(draft, "x", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(draft, path)
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {describe(error)}") from None
