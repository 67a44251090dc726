"""How many true segments have a proposal that fits, and how well, in counts that add.

Dimension key: N budgets of proposals, T thresholds of IoU, Q proposals, G true segments, H W.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.truth_segments import TrueSegments

IOU_THRESHOLDS: Final = tuple((50 + 5 * step) / 100 for step in range(10))  # as of COCO
BUDGETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # and all of them, the last of N

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ProposalRecall:
    """True segments by the best IoU of any of the first proposals with them."""

    images: int
    proposals: int
    segments: int
    hits_NT: NDArray[np.int64]  # segments of which the best IoU is the threshold or more
    best_iou_N: NDArray[np.float64]  # sum over the segments

    @classmethod
    def zero(cls) -> "ProposalRecall":
        """Return the neutral element."""
        budgets = len(BUDGETS) + 1
        hits_NT = np.zeros((budgets, len(IOU_THRESHOLDS)), dtype=np.int64)
        return cls(0, 0, 0, hits_NT, np.zeros(budgets))

    @classmethod
    def of(cls, iou_QG: NDArray[np.float64]) -> "ProposalRecall":
        """Count one image: the IoU of its proposals, best first, with its true segments."""
        num_proposals, num_segments = iou_QG.shape
        # The row before the first: what no proposal at all finds.
        none_1G = np.zeros((1, num_segments))
        best_QG = np.maximum.accumulate(np.concatenate([none_1G, iou_QG]), axis=0)
        best_NG = best_QG[budget_sizes(num_proposals)]
        hits_NTG = best_NG[:, None, :] >= np.array(IOU_THRESHOLDS)[None, :, None]
        return cls(1, num_proposals, num_segments, hits_NTG.sum(axis=2), best_NG.sum(axis=1))

    def __add__(self, other: "ProposalRecall") -> "ProposalRecall":
        return ProposalRecall(
            self.images + other.images,
            self.proposals + other.proposals,
            self.segments + other.segments,
            self.hits_NT + other.hits_NT,
            self.best_iou_N + other.best_iou_N,
        )

    def recall(self) -> NDArray[np.float64]:
        """Return the recall (N, T), nan without a true segment."""
        if not self.segments:
            return np.full(self.hits_NT.shape, np.nan)
        return self.hits_NT / self.segments

    def average_recall(self) -> NDArray[np.float64]:
        """Return AR (N,): the mean recall over the thresholds."""
        return np.asarray(self.recall().mean(axis=1))

    def mean_best_iou(self) -> NDArray[np.float64]:
        """Return the mean (N,) over true segments of the best IoU, nan without a segment."""
        if not self.segments:
            return np.full(self.best_iou_N.shape, np.nan)
        return self.best_iou_N / self.segments

    @property
    def mean_proposals(self) -> float:
        """Proposals per image."""
        return self.proposals / self.images if self.images else math.nan


def budget_sizes(num_proposals: int) -> list[int]:
    """Return how many proposals (N,) each budget takes of an image that has so many."""
    return [min(budget, num_proposals) for budget in BUDGETS] + [num_proposals]


def segment_ious(masks: Iterable[Mask], truths: TrueSegments) -> NDArray[np.float64]:
    """Return the IoU (Q, G) of masks (H, W) with the true segments of all maps.

    Pixels of no segment are left out of the masks: the truth does not know what is there.
    """
    rows = []
    for mask_HW in masks:
        row = []
        for ids_HW, areas in zip(truths.maps, truths.areas, strict=True):
            inside = np.bincount(ids_HW[mask_HW], minlength=len(areas))
            union = inside[1:].sum() + areas - inside
            row.append((inside / np.maximum(union, 1))[truths.large_enough(areas)])
        rows.append(np.concatenate(row))
    return np.array(rows).reshape(len(rows), truths.num_segments)
