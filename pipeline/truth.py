"""Maps beside images: files matched to images by their paths, PNG maps of class indices.

Dimension key: H W pixels.
"""

from collections.abc import Collection, Iterable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.packed import Cell, is_packed, split_member
from pipeline.resize import Size
from pipeline.storage import hide_secrets
from schemas.errors import SettingsError

_INDEX_MODES = frozenset({"L", "P", "I", "I;16"})


class ImageFiles:
    """Files of images: each is found by the stem of its image, of equal stems by the folders."""

    def __init__(self, paths: Iterable[Path]) -> None:
        # Where folders mirror the source, the file of an image at the top lies at the top.
        self._paths = sorted(paths, key=lambda path: (len(path.parts), path))
        # By stem and innermost folders, as many of these as it took to tell files apart.
        self._named: dict[tuple[str, ...], list[Path]] = {}
        self._divided: set[tuple[str, ...]] = set()
        for path in self._paths:
            self._named.setdefault((path.stem,), []).append(path)

    @classmethod
    def below(cls, directory: str, suffixes: Collection[str]) -> Self:
        """Collect the files of some suffixes anywhere below a directory."""
        found = Path(directory).rglob("*")
        return cls(path for path in found if path.suffix in suffixes and path.is_file())

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Path]:
        return iter(self._paths)

    def of(self, uri: str) -> Path | None:
        """Return the file of an image, or None: of several, the path that agrees furthest."""
        image = _place(uri)
        name: tuple[str, ...] = (image.stem,)
        for folder in image.parts[-2::-1]:
            if len(self._named.get(name, ())) < 2:
                break
            self._divide(name)
            longer = ((*name, one) for one in _folder_names(folder))
            found = next((one for one in longer if one in self._named), None)
            if found is None:
                break
            name = found
        return next(iter(self._named.get(name, ())), None)

    def _divide(self, name: tuple[str, ...]) -> None:
        """Tell the files of a name apart by one folder more; once, however often it is asked."""
        if name not in self._divided:
            self._divided.add(name)
            for path in self._named[name]:
                for folder in path.parts[-1 - len(name) : -len(name)]:
                    self._named.setdefault((*name, folder), []).append(path)

    def paired(self, uris: Iterable[str]) -> dict[str, Path]:
        """Return the files of those images that have one, by URI.

        A file is of one image: of several that it matches, that whose path agrees furthest. Raises
        SettingsError where two agree equally.
        """
        claims: dict[Path, tuple[int, list[str]]] = {}
        for uri in uris:
            path = self.of(uri)
            if path is None:
                continue
            agreed = _agreement(path, _place(uri))
            furthest, claimants = claims.get(path, (-1, []))
            if agreed > furthest:
                claims[path] = (agreed, [uri])
            elif agreed == furthest and len(claimants) == 1:
                claims[path] = (agreed, [*claimants, uri])  # two are enough to tell
        for path, (_, claimants) in claims.items():
            if len(claimants) > 1:
                one, other = map(hide_secrets, claimants)
                raise SettingsError(
                    f"{path} may be of {one} or of {other}; put it into a folder named as that of "
                    "its image"
                )
        return {claimants[0]: path for path, (_, claimants) in claims.items()}


class Truths(ImageFiles):
    """The label maps below a directory."""

    @classmethod
    def find(cls, directory: str) -> Self:
        """Collect the PNG files of a directory; raises SettingsError when there are none."""
        truths = cls.below(directory, {".png"})
        if not truths:
            raise SettingsError(f"there are no PNG label maps in {directory}")
        return truths

    def read(self, uri: str, size: Size) -> NDArray[np.int32]:
        """Return the truth of an image of original `size`, (H, W).

        Raises ValueError when it has none, one that cannot be read, or one of another size.
        """
        path = self.of(uri)
        if path is None:
            raise ValueError(f"{uri} has no truth")
        return read_truth(path, size)


def _place(uri: str) -> PurePosixPath:
    """Return the path of an image; a tar or Parquet file is the folder of those in it."""
    file, member = split_member(uri)
    if member is None:
        return PurePosixPath(uri)
    before_its_name = 2 if isinstance(member, Cell) else 1  # the row and its column, or the bytes
    return PurePosixPath(file, uri.removeprefix(file).split("/", before_its_name)[-1])


def _folder_names(folder: str) -> tuple[str, ...]:
    """Return what a folder may be called beside files: a tar or Parquet file also by its stem."""
    return (folder, PurePosixPath(folder).stem) if is_packed(folder) else (folder,)


def _agreement(file: Path, image: PurePosixPath) -> int:
    """Count the parent folders, from the innermost outwards, that bear the same name."""
    agreed = 0
    for mine, theirs in zip(file.parts[-2::-1], image.parts[-2::-1], strict=False):
        if mine not in _folder_names(theirs):
            break
        agreed += 1
    return agreed


def read_truth(path: Path, size: Size) -> NDArray[np.int32]:
    """Read the truth of an image of original `size`, (H, W).

    Raises ValueError for a file that cannot be read, or that is of another size.
    """
    truth_HW = read_indices(path)
    if truth_HW.shape != size:
        found, wanted = ("x".join(map(str, shape)) for shape in (truth_HW.shape, size))
        raise ValueError(f"truth {path} is {found}, the image is {wanted} (height x width)")
    return truth_HW


def read_label_map(path: Path) -> NDArray[np.int32]:
    """Read a truth, a PNG of class indices (palette or grey), (H, W).

    Raises SettingsError for a file that cannot be decoded and for a colour image.
    """
    try:
        return read_indices(path)
    except ValueError as error:
        raise SettingsError(f"truth {error}") from None


def read_indices(path: Path) -> NDArray[np.int32]:
    """Read an image of indices (palette or grey), (H, W).

    Raises ValueError for a file that cannot be decoded and for a colour image.
    """
    try:
        return decode_indices(path)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def decode_indices(source: Path | BytesIO) -> NDArray[np.int32]:
    """Read an image of indices (H, W) from a file or from bytes; ValueError as for a file."""
    try:
        with Image.open(source) as file:
            mode = file.mode
            indices_HW = np.asarray(file)
    except Exception as error:  # decoders raise almost any type on corrupt files
        raise ValueError(f"cannot be read: {type(error).__name__}: {error}") from None
    if mode not in _INDEX_MODES:
        raise ValueError(f"is a {mode} image, not one of indices")
    return indices_HW.astype(np.int32)
