"""Label maps to segments and back; the segments of an image partition its label map.

Dimension key: H W pixels, N segments, R runs.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.resize import Size

IGNORE: Final = -1
_SMALLEST: Final = float(np.finfo(np.float32).smallest_normal)


def least_score(min_score: float) -> float:
    """Return the score from which on a pixel is of a segment: without any evidence (0) it never is.

    What is smaller than a normal number counts as 0, since some processors flush it.
    """
    return max(min_score, _SMALLEST)


@dataclass(frozen=True, eq=False)
class KeptLabels:
    """A label map that is IGNORE where a pixel is of no segment, and sums over each class's pixels.

    Kept pixels have a score above 0, and so has the sum of every class that occurs.
    """

    classes_HW: NDArray[np.integer[Any]]
    scores_K: NDArray[np.float64]
    margins_K: NDArray[np.float64] | None

    @classmethod
    def of(
        cls,
        classes_HW: NDArray[np.integer[Any]],
        scores_HW: NDArray[np.float32],
        margins_HW: NDArray[np.float32] | None,
        num_classes: int,
    ) -> Self:
        """Add up what is known of every pixel; without `margins_HW` there are no margins."""
        scores_K = class_sums(classes_HW, scores_HW, num_classes)
        if margins_HW is None:
            return cls(classes_HW, scores_K, None)
        return cls(classes_HW, scores_K, class_sums(classes_HW, margins_HW, num_classes))

    def occurring(self) -> NDArray[np.int64]:
        """Return the classes that occur, in ascending order."""
        return np.flatnonzero(self.scores_K)


def class_sums(
    classes: NDArray[np.integer[Any]], values: NDArray[np.floating[Any]], num_classes: int
) -> NDArray[np.float64]:
    """Return the sums (K,) of values over the points of each class; IGNORE is of none."""
    sums = np.bincount(classes.ravel() + 1, values.ravel(), num_classes + 1)
    return np.asarray(sums[1:], np.float64)


def encode_segments(
    classes_HW: NDArray[np.integer[Any]],
    scores_HW: NDArray[np.float32],
    names: Sequence[str],
    min_score: float,
    margins_HW: NDArray[np.float32] | None = None,
) -> list[dict[str, Any]]:
    """Return the segments of a label map, see `encode_kept`.

    Pixels scored below `min_score`, and pixels without any evidence (score 0), belong to no
    segment.
    """
    is_kept_HW = scores_HW >= least_score(min_score)
    kept_HW = np.where(is_kept_HW, classes_HW.astype(np.int32, copy=False), IGNORE)
    return encode_kept(KeptLabels.of(kept_HW, scores_HW, margins_HW, len(names)), names)


def encode_kept(labels: KeptLabels, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one segment per class that occurs, in order of class index.

    A segment's score and margin are means over its pixels (None: it has no margin), its box is
    half-open XYXY, its counts are COCO's compressed RLE. The map is read once, whatever the number
    of classes.
    """
    kept_HW, leads = labels.classes_HW, labels.margins_K
    runs = _Runs.of(kept_HW)
    segments: list[dict[str, Any]] = []
    for class_index, area, box, counts in zip(
        runs.classes_N.tolist(),
        runs.areas().tolist(),
        runs.boxes(kept_HW.shape[0]).tolist(),
        runs.compressed(kept_HW.size),
        strict=True,
    ):
        segments.append(
            {
                "segment_id": len(segments) + 1,
                "label": names[class_index],
                "class_index": class_index,
                "score": min(float(labels.scores_K[class_index]) / area, 1.0),
                "margin": None if leads is None else min(float(leads[class_index]) / area, 1.0),
                "area": area,
                "box": box,
                "counts": counts,
            }
        )
    return segments


@dataclass(frozen=True)
class _Runs:
    """The runs of every class down the columns of a map, which go on in the next column (COCO).

    Classes ascend; the runs of class n are those from `first_N[n]` on, from top left to bottom
    right. Runs are half-open.
    """

    starts_R: NDArray[np.int64]
    stops_R: NDArray[np.int64]
    classes_N: NDArray[np.integer[Any]]
    first_N: NDArray[np.int64]

    @classmethod
    def of(cls, kept_HW: NDArray[np.integer[Any]]) -> "_Runs":
        """Return the runs of all classes but IGNORE."""
        kept = kept_HW.ravel(order="F")
        edges = np.flatnonzero(kept[1:] != kept[:-1]) + 1
        starts_R, stops_R = np.append(0, edges), np.append(edges, kept.size)
        order_R = np.argsort(kept[starts_R], kind="stable")
        order_R = order_R[kept[starts_R[order_R]] != IGNORE]
        starts_R, stops_R = starts_R[order_R], stops_R[order_R]
        return cls(starts_R, stops_R, *np.unique(kept[starts_R], return_index=True))

    def areas(self) -> NDArray[np.int64]:
        """Return the pixels (N,) of every class."""
        return self._per_class(np.add, self.stops_R - self.starts_R)

    def boxes(self, height: int) -> NDArray[np.int64]:
        """Return the half-open XYXY box (N, 4) of every class."""
        last_R = self.stops_R - 1
        (x0_R, y0_R), (x1_R, y1_R) = np.divmod(self.starts_R, height), np.divmod(last_R, height)
        turns_R = x0_R < x1_R  # a run that goes on in the next column touches bottom and top
        y0_R, y1_R = np.where(turns_R, 0, y0_R), np.where(turns_R, height - 1, y1_R)
        low = [self._per_class(np.minimum, values) for values in (x0_R, y0_R)]
        high = [self._per_class(np.maximum, values) + 1 for values in (x1_R, y1_R)]
        return np.stack([*low, *high], axis=1)

    def compressed(self, num_pixels: int) -> list[bytes]:
        """Return COCO's compressed RLE of every class.

        Counts alternate between outside and inside; the last one, outside, is absent where it is 0.
        From the fourth on each is written as its difference to the last but one.
        """
        if not len(self.classes_N):
            return []
        before_R = np.append(0, self.stops_R[:-1])
        before_R[self.first_N] = 0
        counts = np.stack([self.starts_R - before_R, self.stops_R - self.starts_R], axis=1).ravel()
        ends_N = np.append(self.first_N[1:], len(self.starts_R))
        tails_N = num_pixels - self.stops_R[ends_N - 1]
        has_tail_N = tails_N > 0
        counts = np.insert(counts, 2 * ends_N[has_tail_N], tails_N[has_tail_N])
        length_N = 2 * (ends_N - self.first_N) + has_tail_N
        start_N = length_N.cumsum() - length_N
        position = np.arange(len(counts)) - np.repeat(start_N, length_N)
        written = counts.copy()
        written[2:] -= np.where(position[2:] > 2, counts[:-2], 0)
        text, text_length = _digits(written)
        cuts = np.append(0, text_length.cumsum())[np.append(start_N, len(counts))].tolist()
        return [text[start:stop] for start, stop in itertools.pairwise(cuts)]

    def _per_class(self, combine: np.ufunc, values_R: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self.first_N):
            return values_R[:0]
        combined: NDArray[np.int64] = combine.reduceat(values_R, self.first_N)
        return combined


def _digits(values: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """Return numbers as COCO writes them, and how many characters each takes.

    Numbers of at most 31 bits, five a character, least first, from "0" on; the sixth bit says that
    more follow, and the fifth of the last is the sign.
    """
    largest = int(np.abs(values).max())
    most = largest.bit_length() // 5 + 1
    rest = values.astype(np.int32)[:, None] >> np.arange(0, 5 * most, 5, dtype=np.int32)
    characters = (rest & 31).astype(np.uint8)
    # Bits that are left say nothing new where they all equal the sign bit of this character.
    more = (rest >> 4) != (rest >> 31)
    needed = np.ones_like(more)
    needed[:, 1:] = more[:, :-1]
    characters += np.uint8(48) + (more.view(np.uint8) << 5)
    return characters[needed].tobytes(), needed.sum(axis=1)


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
