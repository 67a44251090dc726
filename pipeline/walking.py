"""Every file below a folder; one that cannot be read is an error, and never an empty folder."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fsspec


def files_below(
    fs: fsspec.AbstractFileSystem,
    folder: str,
    leads: Callable[[str], bool] | None = None,
    listed: Callable[[str], Iterable[dict[str, Any]]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the info of every file below, holding one folder at once.

    `leads` says which folders are looked into, by path (None: all); `listed` lists one in another
    way than `fs.ls`. fsspec's own `walk` and `find` pass over what they may not or cannot list.
    Here only a folder that is not there holds nothing; whatever else a store raises is raised.
    """
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        folders: list[str] = []
        try:
            for info in listed(place) if listed else fs.ls(place, detail=True):
                name = info["name"].rstrip("/")
                # An object store's folder may hold an object of its own name, the mark of a folder.
                if name == place.rstrip("/"):
                    continue
                if info["type"] != "directory":
                    yield info
                elif leads is None or leads(name):
                    folders.append(name)
        except FileNotFoundError:  # gone since it was listed
            continue
        waiting += reversed(folders)
