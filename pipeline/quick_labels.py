"""The label map from stride-4 masks, computed in full only where labels meet.

Class scores are summed at the nodes of the grid of mask logits. Between four nodes of one label
every pixel has that label; the pixels of all other cells are computed one by one, for the classes
that win at some node. `label_map` computes every pixel for every class; how often
the two differ is measured by `tests/bench/relabel.py`.

Arrays here are small, and most of the time goes into calls: what is not a product of matrices is
NumPy's, on the host, whose calls cost a fraction of torch's.

Dimension key: Q proposals, K class names, C classes of the nodes, h w grid of mask logits, H W
original pixels, N nodes of the grid, P pixels near a border.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.fusion import LEAST_EVIDENCE
from pipeline.resize import Size
from pipeline.segments import IGNORE, KeptLabels, class_sums, least_score

_Floats = NDArray[np.float32]
_Places = NDArray[np.int64]

_LEAST: Final = np.float32(LEAST_EVIDENCE)


def quick_labels(
    class_scores_QK: Tensor,
    mask_logits_Qhw: Tensor,
    sizes: tuple[Size, Size, Size],
    min_score: float,
) -> KeptLabels:
    """Return the labels of the original, nearly those that `label_map` keeps at `min_score`.

    `sizes` are of the padded image that the grid covers, of the resized image in its upper left
    corner, and of the original. A cell is also computed in full where `min_score` lies between the
    scores of its nodes; the score within a cell of one label is the mean of its nodes, and so is
    the margin within any cell.
    """
    padded, resized, original = sizes
    num_classes = class_scores_QK.shape[1]
    if not len(mask_logits_Qhw):
        return KeptLabels(np.full(original, IGNORE), *np.zeros((2, num_classes)))
    mask_logits_Qhw = mask_logits_Qhw.cpu()
    class_scores_KQ = torch.cat(
        [class_scores_QK.T, class_scores_QK.new_ones(1, len(mask_logits_Qhw))]
    ).cpu()
    rows = _Axis.of(mask_logits_Qhw.shape[1], padded[0], resized[0], original[0])
    columns = _Axis.of(mask_logits_Qhw.shape[2], padded[1], resized[1], original[1])
    grid = (rows.nodes, columns.nodes)
    logits_NQ = mask_logits_Qhw[:, : grid[0], : grid[1]].flatten(1).T.contiguous()
    nodes = _Winners.of(logits_NQ, class_scores_KQ)
    # A node under the threshold has a label of its own: none.
    labels_hw = nodes.kept(min_score).reshape(grid)
    first_hw, *others = _corners(labels_hw)
    agree_hw = np.logical_and.reduce([first_hw == other_hw for other_hw in others])
    scores_hw, margins_hw = (
        _corners(values_N.reshape(grid)).mean(axis=0)
        for values_N in (nodes.scores_N, nodes.margins())
    )
    kept_WH = columns.spread(rows, labels_hw.T)
    near_P = np.flatnonzero(~columns.spread(rows, agree_hw.T))
    pixels_hw = rows.pixels[:, None] * columns.pixels * agree_hw
    known = [(labels_hw, scores_hw * pixels_hw, margins_hw * pixels_hw)]
    if len(near_P):
        column_P, row_P = np.divmod(near_P, original[0])
        logits_PQ, cells_P = _interpolated(logits_NQ, rows, columns, row_P, column_P)
        points = _Winners.of(logits_PQ, class_scores_KQ[np.append(nodes.winners_C, -1)])
        # The last entry is for -1.
        kept_P = np.append(nodes.winners_C, IGNORE)[points.kept(min_score)]
        kept_WH.ravel()[near_P] = kept_P
        known.append((kept_P, points.scores_N, margins_hw.ravel()[cells_P]))
    labels, scores, margins = (
        np.concatenate([values.ravel() for values in parts]) for parts in zip(*known, strict=True)
    )
    scores_K, margins_K = (class_sums(labels, sums, num_classes) for sums in (scores, margins))
    return KeptLabels(kept_WH.T, scores_K, margins_K)


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where the pixels of one axis lie between the nodes of the grid."""

    nodes: int  # that the image reaches; beyond them is padding
    pixels: _Places  # per node how many pixels lie between it and the next
    lower: _Places  # per pixel the node before it
    upper: _Places  # and after it; the last node stands for what would follow
    weight: _Floats  # of the upper one

    @classmethod
    def of(cls, nodes: int, padded: int, resized: int, original: int) -> Self:
        """Take half-pixel centres, from the original by way of the resized image to the grid."""
        centres = (np.arange(original, dtype=np.float32) + np.float32(0.5)) * np.float32(
            resized / original
        )
        place = (centres * np.float32(nodes / padded) - np.float32(0.5)).clip(0, nodes - 1)
        lower = place.astype(np.int64)
        upper = np.minimum(lower + 1, nodes - 1)
        reached = int(upper[-1]) + 1
        pixels = np.bincount(lower, minlength=reached)
        return cls(reached, pixels, lower, upper, place - lower.astype(np.float32))

    def spread(self, other: "_Axis", cells: NDArray[Any]) -> NDArray[Any]:
        """Return per pixel the value of the cell that it lies in; this axis comes first."""
        return cells.take(other.lower, axis=1).take(self.lower, axis=0)


@dataclass(frozen=True, eq=False)
class _Winners:
    """The class of every point and its score, as in `LabelMap`, and what its margin is made of."""

    classes_N: _Places
    scores_N: _Floats
    best_N: _Floats
    sums_KN: _Floats
    winners_C: _Places  # the classes of all points

    @classmethod
    def of(cls, logits_NQ: Tensor, class_scores_KQ: Tensor) -> Self:
        """Sum the class scores of every point over its masks; the last row is of ones."""
        sums_KN = (class_scores_KQ @ logits_NQ.sigmoid().T).numpy()
        sums_KN, evidence_N = sums_KN[:-1], sums_KN[-1]
        best_N = sums_KN.max(axis=0)
        # The first of the few classes that win anywhere: cheaper than where the maximum of all is.
        is_best_KN = sums_KN == best_N
        winners_C = np.flatnonzero(is_best_KN.any(axis=1))
        classes_N = np.where(is_best_KN[winners_C], winners_C[:, None], len(sums_KN)).min(axis=0)
        return cls(classes_N, best_N / np.maximum(evidence_N, _LEAST), best_N, sums_KN, winners_C)

    def kept(self, min_score: float) -> _Places:
        """Return the classes, -1 where the score is below the threshold or 0."""
        is_kept_N = self.scores_N >= least_score(min_score)
        return np.where(is_kept_N, self.classes_N, IGNORE)

    def margins(self) -> _Floats:
        """Return the margins; the sums are used up."""
        self.sums_KN[self.classes_N, np.arange(len(self.classes_N))] = 0
        second_N = self.sums_KN.max(axis=0)
        lead_N: _Floats = (self.best_N - second_N) / np.maximum(self.best_N, _LEAST)
        return lead_N


def _corners(nodes_hw: NDArray[Any]) -> NDArray[Any]:
    """Return the values (4, h, w) of the four nodes of every cell."""
    height, width = nodes_hw.shape
    edged = np.empty((height + 1, width + 1), nodes_hw.dtype)
    edged[:-1, :-1] = nodes_hw
    edged[-1], edged[:, -1] = edged[-2], edged[:, -2]
    return np.stack([edged[:-1, :-1], edged[1:, :-1], edged[:-1, 1:], edged[1:, 1:]])


def _interpolated(
    logits_NQ: Tensor, rows: _Axis, columns: _Axis, row_P: _Places, column_P: _Places
) -> tuple[Tensor, _Places]:
    """Return the logits (P, Q) of some pixels, and the node (P,) before each."""
    upper_P, lower_P = rows.lower[row_P] * columns.nodes, rows.upper[row_P] * columns.nodes
    left_P, right_P = columns.lower[column_P], columns.upper[column_P]
    down_P, across_P = rows.weight[row_P], columns.weight[column_P]
    up_P, back_P = 1 - down_P, 1 - across_P
    cells_P = upper_P + left_P
    corners_P4 = np.stack([cells_P, upper_P + right_P, lower_P + left_P, lower_P + right_P], 1)
    weights_P4 = np.stack([up_P * back_P, up_P * across_P, down_P * back_P, down_P * across_P], 1)
    # One call instead of four gathers and three interpolations.
    logits_PQ = embedding_bag(
        torch.from_numpy(corners_P4.ravel()),
        logits_NQ,
        torch.from_numpy(np.arange(0, corners_P4.size, 4)),
        mode="sum",
        per_sample_weights=torch.from_numpy(weights_P4.ravel()),
    )
    return logits_PQ, cells_P
