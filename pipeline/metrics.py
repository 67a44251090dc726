"""Semantic segmentation metrics as values that add: parts merged equal the whole (spec 5.2).

Dimension key: K class names, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE_TRUTH = 255


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixel counts (K + 1, K): rows predicted (the last: no label), columns truth."""

    counts: NDArray[np.int64]

    @classmethod
    def zero(cls, num_classes: int) -> "Confusion":
        """Return the neutral element."""
        return cls(np.zeros((num_classes + 1, num_classes), dtype=np.int64))

    @classmethod
    def of(
        cls,
        predicted_HW: NDArray[np.integer[Any]],
        truth_HW: NDArray[np.integer[Any]],
        num_classes: int,
        ignore: int = IGNORE_TRUTH,
    ) -> "Confusion":
        """Count one image; a predicted index outside 0..K-1 means the pixel has no label.

        Raises ValueError when sizes differ or the truth holds an index that is neither a class nor
        `ignore`.
        """
        if predicted_HW.shape != truth_HW.shape:
            raise ValueError(f"prediction is {predicted_HW.shape}, truth is {truth_HW.shape}")
        counted = truth_HW != ignore
        truth = truth_HW[counted].astype(np.int64)
        if truth.size and not 0 <= int(truth.min()) <= int(truth.max()) < num_classes:
            found = sorted({int(truth.min()), int(truth.max())})
            raise ValueError(f"truth holds indices up to {found}, there are {num_classes} classes")
        predicted = predicted_HW[counted].astype(np.int64)
        predicted[(predicted < 0) | (predicted >= num_classes)] = num_classes
        cells = np.bincount(
            predicted * num_classes + truth, minlength=(num_classes + 1) * num_classes
        )
        return cls(cells.reshape(num_classes + 1, num_classes))

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(self.counts + other.counts)

    def iou(self) -> NDArray[np.float64]:
        """Return the IoU (K,) of every class, nan for classes absent from the truth."""
        num_classes = self.counts.shape[1]
        hit = np.diagonal(self.counts[:num_classes]).astype(np.float64)
        truth = self.counts.sum(axis=0)
        predicted = self.counts[:num_classes].sum(axis=1)
        union = truth + predicted - hit
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(truth > 0, hit / union, np.nan)

    def miou(self, members: Sequence[bool] | None = None) -> float:
        """Return the mean IoU over `members` (all classes if absent) by the reference's protocol.

        The mean is over classes that occur in the truth *or* in a prediction: a class predicted
        but absent from the truth counts as 0. nan when no such class is a member.
        """
        num_classes = self.counts.shape[1]
        chosen = np.ones(num_classes, dtype=bool) if members is None else np.asarray(members)
        occurs = (self.counts.sum(axis=0) > 0) | (self.counts[:num_classes].sum(axis=1) > 0)
        iou = np.nan_to_num(self.iou())[chosen & occurs]
        return float(iou.mean()) if iou.size else float("nan")

    def pixel_accuracy(self) -> float:
        """Return the share of counted pixels that carry their true label; nan without any."""
        total = int(self.counts.sum())
        hits = int(np.trace(self.counts[: self.counts.shape[1]]))
        return hits / total if total else float("nan")


def harmonic_iou(seen_miou: float, unseen_miou: float) -> float:
    """Return hIoU, the harmonic mean of seen and unseen mIoU; 0 when either is 0."""
    if seen_miou == 0 or unseen_miou == 0:
        return 0.0
    return 2.0 / (1.0 / seen_miou + 1.0 / unseen_miou)
