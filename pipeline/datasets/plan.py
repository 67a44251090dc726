"""What is known of a data set before any pixel is read: its classes, its files, their pairs.

Every check of this step raises DatasetError, which names the file and what would be right.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DatasetError
from schemas.vocabulary import Vocabulary, VocabularyClass

Decoder = Callable[[bytes], NDArray[np.int32]]  # a raw label file -> its values (H, W)

_NAMED: Final = 3  # files named in one message


class Blob(Protocol):
    """The bytes of an image or of a raw label map, wherever they lie."""

    @property
    def where(self) -> str:
        """The place, for messages."""

    def read(self) -> bytes:
        """Return the bytes; raises OSError or ValueError."""


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A file of its own."""

    path: Path

    @property
    def where(self) -> str:
        """Its path."""
        return str(self.path)

    def read(self) -> bytes:
        """Return its content."""
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class Pair:
    """One image and its raw label map; `name` is the path of both below their split."""

    name: str  # without a suffix
    image: Blob
    labels: Blob


@dataclass(frozen=True)
class Plan:
    """How one download becomes index maps.

    A raw value becomes the class index that `index_of` says, or is ignored; any other is an error.
    """

    vocabulary: Vocabulary
    index_of: Mapping[int, int]
    ignored: frozenset[int]
    splits: Mapping[str, Sequence[Pair]]
    decode: Decoder
    # What tells another source of equal names apart: there is no official download to rely on.
    origin: tuple[str, ...] = ()

    def base_splits(self) -> dict[str, str]:
        """Return the split of maps of seen classes alone of every split; none without unseen ones.

        Raises DatasetError for a split that has such a name already.
        """
        seen = self.vocabulary.seen
        if seen is None or all(seen) or not any(seen):
            return {}
        names = {split: f"{split}_base" for split in self.splits}
        if taken := names.keys() & set(names.values()):
            raise DatasetError(f"split {min(taken)!r} has the name of maps that are made here")
        return names


@dataclass(frozen=True)
class Request:
    """What the user says of a download."""

    source: Path
    partial: bool = False  # other numbers of images than the official ones are no error
    vocabulary: Path | None = None
    label_values: tuple[int, ...] = ()  # of the classes in order; none: 0, 1, 2, ...
    ignore_values: tuple[int, ...] | None = None  # none said: 255, or 65535 where 255 is a class
    image_column: str = "image"
    mask_column: str | None = None


@dataclass(frozen=True)
class DatasetEntry:
    """One line of the registry."""

    summary: str
    downloads: tuple[str, ...]  # files to unpack, or what to have
    plan: Callable[[Request], Plan]
    images: Mapping[str, int] = field(default_factory=dict)  # official numbers per split
    takes: frozenset[str] = frozenset()  # settings of a Request that it has a use for


def flagged(names: Iterable[str], unseen: Iterable[str]) -> Vocabulary:
    """Return the vocabulary of a split into seen and unseen classes."""
    hidden = frozenset(unseen)
    return Vocabulary(
        classes=tuple(VocabularyClass(name=name, seen=name not in hidden) for name in names)
    )


def number_names(names: Mapping[int, str]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the names in order of raw value, each once, and the class index of every value."""
    index_of_name: dict[str, int] = {}
    index_of = {
        value: index_of_name.setdefault(names[value], len(index_of_name)) for value in sorted(names)
    }
    return tuple(index_of_name), index_of


def find_folder(source: Path, candidates: Sequence[str], download: str) -> Path:
    """Return the first candidate that is a folder below `source`."""
    for candidate in candidates:
        if (source / candidate).is_dir():
            return source / candidate
    raise DatasetError(f"{source} has no folder {candidates[0]}; unpack {download} there")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list that are not blank, stripped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetError(f"cannot read {path}: {reason}") from None
    return [line.strip() for line in lines if line.strip()]


def stems(folder: Path, suffix: str) -> list[str]:
    """Return the names of the files of a suffix in a folder, without it, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name.removesuffix(suffix) for entry in entries if entry.name.endswith(suffix)
        )


def check_images(
    splits: Mapping[str, Sequence[Pair]], official: Mapping[str, int], partial: bool
) -> None:
    """Refuse a split without images, and one of another number of images than the official."""
    for split, pairs in splits.items():
        if not pairs:
            raise DatasetError(f"split {split!r} has no images")
        if not partial and len(pairs) != official[split]:
            raise DatasetError(
                f"split {split!r} has {len(pairs)} images, officially {official[split]}; complete "
                "the download, or give --partial for a part of it"
            )


def check_apart(splits: Mapping[str, Sequence[Pair]]) -> None:
    """Refuse splits that share an image."""
    home: dict[str, str] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            other = home.setdefault(pair.name, split)
            if other != split:
                raise DatasetError(f"image {pair.name} is in split {other!r} and in {split!r}")


def pair_all(images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[Pair]:
    """Pair files by name; refuses an image without labels, and labels without an image."""
    _refuse(images, labels, "images", "labels")
    _refuse(labels, images, "label maps", "image")
    return [Pair(name, FileBlob(images[name]), FileBlob(labels[name])) for name in sorted(images)]


def pair_listed(
    names: Iterable[str], images: Mapping[str, Path], labels: Mapping[str, Path], listed: Path
) -> list[Pair]:
    """Pair the files of a list of names; refuses a repeated name, and one without a file."""
    names = list(names)
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{listed} names {repeated} twice")
    for have, what in ((images, "image"), (labels, "label map")):
        missing = [name for name in names if name not in have]
        if missing:
            raise DatasetError(f"{len(missing)} names of {listed} have no {what}: {_some(missing)}")
    return [Pair(name, FileBlob(images[name]), FileBlob(labels[name])) for name in names]


def files(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of a suffix in a folder by their names without it."""
    return {stem: folder / f"{stem}{suffix}" for stem in stems(folder, suffix)}


def _refuse(have: Mapping[str, Path], need: Mapping[str, Path], what: str, partner: str) -> None:
    alone = sorted(have.keys() - need.keys())
    if alone:
        first = have[alone[0]]
        more = f" (and {len(alone) - 1} more {what})" if len(alone) > 1 else ""
        raise DatasetError(f"{first} has no {partner} of that name{more}")


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
