"""Truths as maps of segments without regard to classes: of label maps, id maps, BSDS500's files.

Dimension key: G segments of one map and 0, H W pixels.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from scipy.ndimage import label

from pipeline.resize import Size
from pipeline.truth import ImageFiles, read_indices
from schemas.errors import SettingsError

TruthFormat = Literal["classes", "segments", "bsds"]

MIN_PIXELS: Final = 64  # of a true segment that is to be found; fewer are specks at outlines

_SUFFIXES: Final[dict[TruthFormat, str]] = {"classes": ".png", "segments": ".png", "bsds": ".mat"}
_KINDS: Final[dict[TruthFormat, str]] = {
    "classes": "PNG label maps",
    "segments": "PNG maps of segment ids",
    "bsds": ".mat files of BSDS500",
}


@dataclass(frozen=True, eq=False)
class TrueSegments:
    """Maps (H, W) of segment ids 1, 2, ...; 0 is of no segment. More than one: several people's."""

    maps: tuple[NDArray[np.int32], ...]

    @cached_property
    def areas(self) -> list[NDArray[np.int64]]:
        """Pixels (G,) by id of every map."""
        return [np.bincount(ids_HW.ravel()) for ids_HW in self.maps]

    @property
    def num_segments(self) -> int:
        """How many segments are to be found, over all maps."""
        return sum(int(self.large_enough(areas).sum()) for areas in self.areas)

    @staticmethod
    def large_enough(areas: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which ids (G,) of a map are to be found."""
        chosen = areas >= MIN_PIXELS
        chosen[0] = False
        return chosen


def find_truths(directory: str, kind: TruthFormat) -> ImageFiles:
    """Collect the truths below a directory; raises SettingsError when there are none."""
    truths = ImageFiles.below(directory, {_SUFFIXES[kind]})
    if not truths:
        raise SettingsError(f"there are no {_KINDS[kind]} in {directory}")
    return truths


def read_segments(path: Path, kind: TruthFormat, size: Size, ignore: int) -> TrueSegments:
    """Read the truth of an image of `size`; `ignore` is the class of no segment.

    Raises ValueError for a file that cannot be read as its kind, or that is of another size.
    """
    if kind == "bsds":
        maps = _read_bsds(path)
    elif kind == "segments":
        maps = [_renumbered(_read_ids(path), 0)]
    else:
        maps = [connected_segments(read_indices(path), ignore)]
    for ids_HW in maps:
        if ids_HW.shape != size:
            raise ValueError(f"labels are {size}, truth is {ids_HW.shape}")
    return TrueSegments(tuple(maps))


def connected_segments(truth_HW: NDArray[np.integer[Any]], ignore: int) -> NDArray[np.int32]:
    """Return ids of the connected parts of every class (neighbours share a side)."""
    ids_HW = np.zeros(truth_HW.shape, dtype=np.int32)
    count = 0
    for index in np.unique(truth_HW):
        if index != ignore:
            parts_HW, found = label(truth_HW == index)
            ids_HW[parts_HW > 0] = parts_HW[parts_HW > 0] + count
            count += found
    return ids_HW


def _read_ids(path: Path) -> NDArray[np.int64]:
    """Read ids of an indexed or grey PNG, or of COCO's colours: R + 256 G + 65536 B."""
    try:
        with Image.open(path) as file:
            colours_HW3 = np.asarray(file, dtype=np.int64) if file.mode == "RGB" else None
    except Exception as error:  # decoders raise almost any type on corrupt files
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if colours_HW3 is None:
        return read_indices(path).astype(np.int64)
    return np.asarray(colours_HW3 @ np.array([1, 256, 65536]))


def _read_bsds(path: Path) -> list[NDArray[np.int32]]:
    try:
        cells = loadmat(path)["groundTruth"].ravel()
        found = [np.asarray(cell["Segmentation"][0, 0]) for cell in cells]
    except Exception as error:  # the parser raises almost any type on other files
        raise ValueError(
            f"{path} is not a file of BSDS500, with segmentations under groundTruth: "
            f"{type(error).__name__}: {error}"
        ) from None
    if not found or any(ids.ndim != 2 or ids.dtype.kind not in "iu" for ids in found):
        shapes = [f"{ids.dtype} {ids.shape}" for ids in found]
        raise ValueError(f"{path} holds no maps of segment ids (H, W), but {shapes}")
    return [_renumbered(ids_HW, 0) for ids_HW in found]


def _renumbered(ids_HW: NDArray[np.integer[Any]], nothing: int) -> NDArray[np.int32]:
    """Return ids 1, 2, ... in the place of any; `nothing` becomes 0."""
    values, ranks = np.unique(ids_HW, return_inverse=True)
    numbers = np.cumsum(values != nothing)
    numbers[values == nothing] = 0
    return np.asarray(numbers[ranks].reshape(ids_HW.shape), dtype=np.int32)
