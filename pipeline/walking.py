"""Every file below a folder; one that cannot be read is an error, and never an empty folder."""

from collections.abc import Iterator
from typing import Any

import fsspec


def files_below(
    fs: fsspec.AbstractFileSystem, folder: str, levels: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the info of every file at most `levels` below, holding one folder at once.

    fsspec's own `walk` and `find` pass over what they may not or cannot list. Here only a folder
    that is not there holds nothing; whatever else a store raises is raised.
    """
    waiting = [(folder, 1)]
    while waiting:
        place, level = waiting.pop()
        try:
            listed = fs.ls(place, detail=True)
        except FileNotFoundError:  # gone since it was listed
            continue
        # In an object store a folder may hold an object of its own name, the mark of a folder.
        found = [info for info in listed if info["name"].rstrip("/") != place.rstrip("/")]
        yield from (info for info in found if info["type"] != "directory")
        if levels is None or level < levels:
            folders = [info["name"] for info in found if info["type"] == "directory"]
            waiting += [(name.rstrip("/"), level + 1) for name in reversed(folders)]
