"""Label maps: raw files to values, values to class indices, class indices to PNG.

Dimension key: K class names, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.metrics import truth_ignore
from pipeline.truth import decode_indices

_UNKNOWN: Final = -1
_NAMED: Final = 5  # values named in one message


def decode_png(data: bytes) -> NDArray[np.int32]:
    """Return the values of a grey or palette image."""
    return decode_indices(BytesIO(data))


def decode_mat(data: bytes) -> NDArray[np.int32]:
    """Return `LabelMap` of a MATLAB file, as Pascal Context has them."""
    from scipy.io import loadmat

    try:
        values = loadmat(BytesIO(data), variable_names=["LabelMap"])["LabelMap"]
    except KeyError:
        raise ValueError("there is no variable LabelMap in it") from None
    except Exception as error:  # the reader raises almost any type on broken files
        raise ValueError(f"it is no MATLAB file: {type(error).__name__}: {error}") from None
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise ValueError(f"LabelMap is {values.dtype} of shape {values.shape}, not a map of ids")
    return np.asarray(values, np.int32)


def decode_ade_full(data: bytes) -> NDArray[np.int32]:
    """Return the object ids of a `_seg.png` of the whole ADE20K: red / 10 * 256 + green."""
    try:
        with Image.open(BytesIO(data)) as file:
            mode = file.mode
            pixels_HW3 = np.asarray(file)
    except Exception as error:  # decoders raise almost any type on corrupt files
        raise ValueError(f"cannot be read: {type(error).__name__}: {error}") from None
    if mode != "RGB":
        raise ValueError(f"is a {mode} image, not RGB")
    red_HW, green_HW = pixels_HW3[..., 0].astype(np.int32), pixels_HW3[..., 1].astype(np.int32)
    return np.asarray(red_HW // 10 * 256 + green_HW, np.int32)


@dataclass(frozen=True)
class Indexing:
    """Raw values to the indices of K classes, and to what is ignored."""

    index_of: Mapping[int, int]
    ignored: frozenset[int]
    num_classes: int

    @property
    def ignore(self) -> int:
        """What ignored pixels hold: 255, or 65535 where 255 is a class."""
        return truth_ignore(self.num_classes)

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        table = np.full(max(*self.index_of, *self.ignored, 0) + 1, _UNKNOWN, np.int32)
        table[list(self.ignored)] = self.ignore
        table[list(self.index_of)] = list(self.index_of.values())
        return table

    def apply(self, values_HW: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return class indices; raises ValueError that names the values that are no class."""
        inside_HW = (values_HW >= 0) & (values_HW < len(self._table))
        indices_HW = self._table[np.where(inside_HW, values_HW, 0)]
        unknown_HW = ~inside_HW | (indices_HW == _UNKNOWN)
        if unknown_HW.any():
            found = np.unique(values_HW[unknown_HW])
            named = ", ".join(map(str, found[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
            raise ValueError(
                f"value {named} is neither one of the {self.num_classes} classes nor ignored"
            )
        return indices_HW


def encode_indices(indices_HW: NDArray[np.int32], ignore: int) -> bytes:
    """Return a PNG of class indices, of 16 bits where `ignore` asks for them."""
    file = BytesIO()
    depth = np.uint8 if ignore < 256 else np.uint16
    Image.fromarray(indices_HW.astype(depth)).save(file, "PNG")
    return file.getvalue()
