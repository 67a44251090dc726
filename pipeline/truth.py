"""Maps beside images: files matched to images by their paths, PNG maps of class indices.

Dimension key: H W pixels.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.resize import Size
from pipeline.storage import hide_secrets
from schemas.errors import SettingsError

_INDEX_MODES = frozenset({"L", "P", "I", "I;16"})


@dataclass(frozen=True)
class Truths:
    """The label maps below a directory, by file stem."""

    by_stem: dict[str, list[Path]]

    @classmethod
    def find(cls, directory: str) -> "Truths":
        """Collect the PNG files of a directory; raises SettingsError when there are none."""
        by_stem = files_by_stem(directory, {".png"})
        if not by_stem:
            raise SettingsError(f"there are no PNG label maps in {directory}")
        return cls(by_stem)

    def of(self, uri: str) -> Path | None:
        """Return the truth of an image, or None: of equal stems, the path that agrees furthest."""
        return matching(self.by_stem, uri)

    def read(self, uri: str, size: Size) -> NDArray[np.int32]:
        """Return the truth of an image of original `size`, (H, W).

        Raises ValueError when it has none, one that cannot be read, or one of another size.
        """
        path = self.of(uri)
        if path is None:
            raise ValueError(f"{uri} has no truth")
        return read_truth(path, size)


def files_by_stem(directory: str, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """Collect the files of some suffixes anywhere below a directory, by stem, in order."""
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.suffix in suffixes and path.is_file():
            by_stem.setdefault(path.stem, []).append(path)
    return by_stem


def matching(by_stem: Mapping[str, list[Path]], uri: str) -> Path | None:
    """Return the file of an image's stem, or None: of several, the path that agrees furthest."""
    image = PurePosixPath(uri)
    candidates = by_stem.get(image.stem, [])
    return max(candidates, key=lambda path: _agreement(path, image), default=None)


def paired(by_stem: Mapping[str, list[Path]], uris: Iterable[str]) -> dict[str, Path]:
    """Return the files of those images that have one, by URI.

    A file is of one image: of several that it matches, that whose path agrees furthest. Raises
    SettingsError where two agree equally.
    """
    claims: dict[Path, tuple[int, list[str]]] = {}
    for uri in uris:
        path = matching(by_stem, uri)
        if path is None:
            continue
        agreed = _agreement(path, PurePosixPath(uri))
        furthest, claimants = claims.get(path, (-1, []))
        if agreed > furthest:
            claims[path] = (agreed, [uri])
        elif agreed == furthest and len(claimants) == 1:
            claims[path] = (agreed, [*claimants, uri])  # two are enough to tell
    for path, (_, claimants) in claims.items():
        if len(claimants) > 1:
            one, other = map(hide_secrets, claimants)
            raise SettingsError(
                f"{path} may be of {one} or of {other}; put it into a folder named as that of its "
                "image"
            )
    return {claimants[0]: path for path, (_, claimants) in claims.items()}


def _agreement(file: Path, image: PurePosixPath) -> int:
    """Count the parent folders, from the innermost outwards, that bear the same name."""
    agreed = 0
    for mine, theirs in zip(file.parts[-2::-1], image.parts[-2::-1], strict=False):
        if mine != theirs:
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
