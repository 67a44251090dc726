"""Precision and recall of outlines within a tolerance, as on BSDS500, in counts that add.

The benchmark of Berkeley (Martin, Fowlkes, Malik, PAMI 2004; Arbelaez et al., PAMI 2011) matches
pixels of two outlines one to one. Here a pixel is matched when the other outline is within the
tolerance of it (a distance transform), so that several may meet the same one: for outlines one
pixel wide the figures are close to the benchmark's and never below them.

Dimension key: N outlines of one image (of more and more proposals, say), H W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

SHARE_OF_DIAGONAL: Final = 0.0075  # the benchmark's tolerance

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class OutlineCounts:
    """Pixel counts (N,): on predicted outlines, on true ones, and those near the other.

    Where several people drew a truth, a predicted pixel is matched if it is near an outline of any
    of them, and the outlines of all of them are to be found, as in the benchmark.
    """

    predicted: NDArray[np.int64]
    predicted_hits: NDArray[np.int64]
    truth: NDArray[np.int64]
    truth_hits: NDArray[np.int64]

    @classmethod
    def zero(cls, num_outlines: int = 1) -> "OutlineCounts":
        """Return the neutral element."""
        none = np.zeros(num_outlines, dtype=np.int64)
        return cls(none, none, none, none)

    @classmethod
    def of(cls, predicted: Sequence[Mask], truths: Sequence[Mask]) -> "OutlineCounts":
        """Count one image: predicted outlines (H, W), each against the same true ones."""
        tolerance = SHARE_OF_DIAGONAL * math.hypot(*truths[0].shape)
        near_any_truth = np.any([_near(truth, tolerance) for truth in truths], axis=0)
        counts = []
        before: Mask | None = None
        for outline in predicted:
            if outline is not before:  # of fewer proposals than asked for: the same again
                near = _near(outline, tolerance)
                hits = sum(int((truth & near).sum()) for truth in truths)
                counted = (int(outline.sum()), int((outline & near_any_truth).sum()), hits)
                before = outline
            counts.append(counted)
        found, found_hits, truth_hits = np.array(counts, dtype=np.int64).reshape(-1, 3).T
        all_truth = np.full(len(found), sum(int(truth.sum()) for truth in truths), dtype=np.int64)
        return cls(found, found_hits, all_truth, truth_hits)

    def __add__(self, other: "OutlineCounts") -> "OutlineCounts":
        return OutlineCounts(
            self.predicted + other.predicted,
            self.predicted_hits + other.predicted_hits,
            self.truth + other.truth,
            self.truth_hits + other.truth_hits,
        )

    def precision(self) -> NDArray[np.float64]:
        """Return the share (N,) of predicted pixels near a true outline, nan without any."""
        return _divide(self.predicted_hits, self.predicted)

    def recall(self) -> NDArray[np.float64]:
        """Return the share (N,) of true pixels near the predicted outline, nan without any."""
        return _divide(self.truth_hits, self.truth)

    def f_measure(self) -> NDArray[np.float64]:
        """Return the harmonic mean (N,) of precision and recall, 0 when both are."""
        precision, recall = self.precision(), self.recall()
        total = precision + recall
        means = np.where(np.isnan(total), np.nan, 0.0)
        np.divide(2 * precision * recall, total, out=means, where=total > 0)
        return means


def outline(ids_HW: NDArray[np.integer[Any]] | Mask, counted_HW: Mask | None = None) -> Mask:
    """Return the pixels (H, W) whose right or lower neighbour has another id.

    With `counted_HW` both of the two must be counted: where a truth ends in ignored pixels, nobody
    knows the outline.
    """
    found = np.zeros(ids_HW.shape, dtype=bool)
    counted = np.ones(ids_HW.shape, dtype=bool) if counted_HW is None else counted_HW
    found[:, :-1] = (ids_HW[:, :-1] != ids_HW[:, 1:]) & counted[:, :-1] & counted[:, 1:]
    found[:-1] |= (ids_HW[:-1] != ids_HW[1:]) & counted[:-1] & counted[1:]
    return found


def _near(outline_HW: Mask, tolerance: float) -> Mask:
    if not outline_HW.any():  # the distance to nothing is not defined
        return np.zeros(outline_HW.shape, dtype=bool)
    return np.asarray(distance_transform_edt(~outline_HW) <= tolerance)


def _divide(upper: NDArray[np.int64], lower: NDArray[np.int64]) -> NDArray[np.float64]:
    quotients = np.full(upper.shape, np.nan)
    np.divide(upper, lower, out=quotients, where=lower > 0)
    return quotients
