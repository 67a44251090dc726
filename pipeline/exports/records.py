"""What every export format is given: one record per labelled image, already filtered.

Dimension key: H W pixels, K classes of the export.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.resize import Size
from pipeline.segments import IGNORE, decode_label_map, decode_mask

TRAIN: Final = "train"
VAL: Final = "val"

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_STEM: Final = 80
_ID_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class ExportSegment:
    """The pixels of one class in one image; there is at most one segment per class."""

    class_index: int  # in the classes of the export
    score: float
    area: int  # pixels
    box: tuple[int, int, int, int]  # XYXY, half-open
    counts: bytes  # COCO's compressed RLE

    def mask(self, size: Size) -> NDArray[np.bool_]:
        """Return its pixels (H, W)."""
        return decode_mask(self.counts, size)


@dataclass(frozen=True, slots=True)
class Picture:
    """The bytes of an image whose pixels lie as its label map has them."""

    data: bytes
    suffix: str  # .jpg


@dataclass(frozen=True, slots=True)
class ExportImage:
    """One image of the export.

    `number` is its row in the version, from 0, for the formats that count images. `file_name` is
    the image's file in the export or, where images are not copied, below the dataset's source.
    """

    number: int
    image_id: str
    uri: str
    size: Size
    name: str  # of files in the export, without suffix: letters, digits, _ and -; unique
    file_name: str
    split: str
    segments: tuple[ExportSegment, ...]
    picture: Picture | None

    def label_map(self, ignore: int) -> NDArray[np.int32]:
        """Return class indices (H, W), `ignore` where there is no label."""
        return label_map_of(self.segments, self.size, ignore)


def label_map_of(segments: Iterable[ExportSegment], size: Size, ignore: int) -> NDArray[np.int32]:
    """Return class indices (H, W) of segments, `ignore` where there is none."""
    rows = (
        {"segment_id": one.class_index, "class_index": one.class_index, "counts": one.counts}
        for one in segments
    )
    labels_HW = decode_label_map(rows, size)
    labels_HW[labels_HW == IGNORE] = ignore
    return labels_HW


def file_stem(image_id: str, uri: str) -> str:
    """Return the name of an image's files: what is plain of its own name, and part of its id."""
    stem = _UNSAFE.sub("_", PurePosixPath(uri.rpartition("/")[2]).stem).strip("._")
    digits = _UNSAFE.sub("_", image_id[:_ID_DIGITS])  # nobody vouches for a dataset's ids
    return f"{stem[:_LONGEST_STEM] or 'image'}-{digits}"


def name_below(source: str, uri: str) -> str:
    """Return the path of an image below the source that was annotated; elsewhere its whole URI."""
    places = (source, f"file://{source}")
    for place in places:
        start = place.rstrip("/") + "/"
        if uri.startswith(start):
            return uri.removeprefix(start)
    return uri


def split_of(image_id: str, val_fraction: float, seed: int) -> str:
    """Return `val` for that share of all ids; an image never changes sides as a dataset grows."""
    digest = hashlib.blake2b(f"{seed}/{image_id}".encode(), digest_size=8).digest()
    return VAL if int.from_bytes(digest, "big") < val_fraction * 2**64 else TRAIN


def segment_of(row: Mapping[str, Any], class_index: int) -> ExportSegment:
    """Return a segment of a dataset row under its class of the export."""
    x0, y0, x1, y1 = row["box"]
    return ExportSegment(
        class_index, row["score"], row["area"], (x0, y0, x1, y1), bytes(row["counts"])
    )
