"""Label maps to segments and back; the segments of an image partition its label map.

Dimension key: H W pixels, N segments.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.resize import Size

IGNORE: Final = -1


def encode_segments(
    classes_HW: NDArray[np.integer[Any]],
    scores_HW: NDArray[np.float32],
    names: Sequence[str],
    min_score: float,
) -> list[dict[str, Any]]:
    """Return one segment per class that occurs, in order of class index.

    Pixels scored below `min_score`, and pixels without any evidence (score 0), belong to no
    segment. A segment's score is the mean over its pixels, its box is half-open XYXY, its counts
    are COCO's compressed RLE.
    """
    kept_HW = np.where((scores_HW >= min_score) & (scores_HW > 0), classes_HW, IGNORE)
    segments: list[dict[str, Any]] = []
    for class_index in np.unique(kept_HW):
        if class_index == IGNORE:
            continue
        mask_HW = kept_HW == class_index
        rows, columns = mask_HW.any(axis=1).nonzero()[0], mask_HW.any(axis=0).nonzero()[0]
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        score = float(scores_HW[mask_HW].mean(dtype=np.float64))
        segments.append(
            {
                "segment_id": len(segments) + 1,
                "label": names[class_index],
                "class_index": int(class_index),
                "score": min(score, 1.0),
                "area": int(mask_HW.sum()),
                "box": box,
                "counts": encode_mask(mask_HW),
            }
        )
    return segments


def encode_mask(mask_HW: NDArray[np.bool_]) -> bytes:
    """Return COCO's compressed RLE of a mask."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))["counts"]
    return counts


def decode_mask(counts: bytes, size: Size) -> NDArray[np.bool_]:
    """Return the mask (H, W) of COCO's compressed RLE."""
    decoded = coco_mask.decode({"size": list(size), "counts": counts})
    return np.asarray(decoded, dtype=bool)


def decode_label_map(segments: Iterable[Mapping[str, Any]], size: Size) -> NDArray[np.int32]:
    """Return the label map (H, W) of class indices; pixels of no segment are IGNORE (-1).

    Raises ValueError when segments overlap, since they must partition the map.
    """
    label_map_HW = np.full(size, IGNORE, dtype=np.int32)
    for segment in segments:
        mask_HW = decode_mask(segment["counts"], size)
        if (label_map_HW[mask_HW] != IGNORE).any():
            raise ValueError(f"segment {segment['segment_id']} overlaps another segment")
        label_map_HW[mask_HW] = segment["class_index"]
    return label_map_HW
