"""Do scores tell how often a label is right? Pixels by score and correctness, as counts that add.

Dimension key: S bins of score, K class names, H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NUM_BINS: Final = 20  # of equal width over [0, 1]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Pixels (S,) of labelled segments by the score of their segment.

    Every pixel counts with the score of its segment, the one that a dataset stores, since whoever
    trains on pseudo-labels keeps or drops segments by it and then learns from their pixels.
    """

    pixels: NDArray[np.int64]
    correct: NDArray[np.int64]
    scores: NDArray[np.float64]  # sum over the pixels

    @classmethod
    def zero(cls) -> "Calibration":
        """Return the neutral element."""
        pixels, correct = np.zeros((2, NUM_BINS), dtype=np.int64)
        return cls(pixels, correct, np.zeros(NUM_BINS))

    @classmethod
    def of(
        cls,
        segments: Sequence[Mapping[str, Any]],
        predicted_HW: NDArray[np.integer[Any]],
        truth_HW: NDArray[np.integer[Any]],
        ignore: int,
    ) -> "Calibration":
        """Count one image: its segments, the map that they make up, and the truth of that size.

        Pixels that carry no label or have the truth `ignore` count nowhere.
        """
        counted = (truth_HW != ignore) & (predicted_HW >= 0)
        pixels_K = np.bincount(predicted_HW[counted])
        correct_K = np.bincount(
            predicted_HW[counted & (predicted_HW == truth_HW)], minlength=len(pixels_K)
        )
        total = cls.zero()
        for segment in segments:
            index, score = segment["class_index"], float(segment["score"])
            if index < len(pixels_K):  # else all of its pixels are ignored
                score_bin = min(int(score * NUM_BINS), NUM_BINS - 1)
                total.pixels[score_bin] += pixels_K[index]
                total.correct[score_bin] += correct_K[index]
                total.scores[score_bin] += score * pixels_K[index]
        return total

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.pixels + other.pixels, self.correct + other.correct, self.scores + other.scores
        )

    def accuracy(self) -> NDArray[np.float64]:
        """Return the share (S,) of correct pixels, nan for bins without any."""
        return _divide(self.correct, self.pixels)

    def mean_scores(self) -> NDArray[np.float64]:
        """Return the mean score (S,) of the pixels, nan for bins without any."""
        return _divide(self.scores, self.pixels)

    def expected_error(self) -> float:
        """Return ECE (Guo et al., ICML 2017): mean |accuracy - score| of bins, by their pixels."""
        total = int(self.pixels.sum())
        return float(np.abs(self.correct - self.scores).sum()) / total if total else math.nan

    def kept(self) -> NDArray[np.float64]:
        """Return the share (S,) of labelled pixels in the segments of a bin's lower edge or more.

        This is what a minimum score keeps of the labels.
        """
        return _divide(_from_above(self.pixels), self.pixels.sum())

    def accuracy_of_kept(self) -> NDArray[np.float64]:
        """Return the share (S,) of correct pixels among those kept, nan where nothing is."""
        return _divide(_from_above(self.correct), _from_above(self.pixels))


def bin_edges() -> NDArray[np.float64]:
    """Return the lower edges (S,) of the bins."""
    return np.arange(NUM_BINS) / NUM_BINS


def _from_above(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(values[::-1].cumsum()[::-1])


def _divide(upper: NDArray[Any], lower: Any) -> NDArray[np.float64]:
    quotients = np.full(upper.shape, np.nan)
    np.divide(upper, lower, out=quotients, where=np.asarray(lower) > 0)
    return quotients
