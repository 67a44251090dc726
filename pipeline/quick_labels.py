"""The label map from stride-4 masks, computed in full only where labels meet.

Class scores are summed at the nodes of the grid of mask logits. Between four nodes of one label
every pixel has that label; the pixels of all other cells are computed one by one, for the classes
that win at some node of such a cell. `label_map` computes every pixel for every class; how often
the two differ is measured by `tests/bench/relabel.py`.

Dimension key: Q proposals, K class names, C classes near a border, h w grid of mask logits, H W
original pixels, N nodes of the grid, P pixels near a border.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.fusion import LEAST_EVIDENCE, LabelMap, lead
from pipeline.resize import Size


def quick_label_map(
    class_scores_QK: Tensor,
    mask_logits_Qhw: Tensor,
    sizes: tuple[Size, Size, Size],
    min_score: float,
) -> LabelMap:
    """Return label, score and margin of every pixel of the original, nearly those of `label_map`.

    `sizes` are of the padded image that the grid covers, of the resized image in its upper left
    corner, and of the original. A cell is also computed in full where `min_score` lies between the
    scores of its nodes; the score within a cell of one label is the mean of its nodes, and so is
    the margin within any cell.
    """
    padded, resized, original = sizes
    height, width = original
    if not len(mask_logits_Qhw):
        return LabelMap(
            mask_logits_Qhw.new_zeros(original, dtype=torch.int64),
            mask_logits_Qhw.new_zeros(original),
            mask_logits_Qhw.new_zeros(original),
        )
    device = mask_logits_Qhw.device
    rows = _Axis.of(mask_logits_Qhw.shape[1], padded[0], resized[0], height, device)
    columns = _Axis.of(mask_logits_Qhw.shape[2], padded[1], resized[1], width, device)
    grid = (rows.nodes, columns.nodes)
    logits_NQ = mask_logits_Qhw[:, : grid[0], : grid[1]].flatten(1).T.contiguous()
    sums_NK, masks_NQ = _sums(logits_NQ, class_scores_QK)
    best_N, node_classes_N = sums_NK.max(dim=1)
    node_scores_N = _shares(best_N, masks_NQ)
    node_margins_N = lead(sums_NK, best_N, node_classes_N, dim=1)
    # A node under the threshold has a label of its own: none.
    node_labels_hw = node_classes_N.where(node_scores_N >= min_score, -1).view(grid)
    agree_hw = _all_equal(node_labels_hw)
    cell_scores_hw = _mean_of_corners(node_scores_N.view(grid))

    classes_HW = rows.spread(columns, node_classes_N.view(grid))
    scores_HW = rows.spread(columns, cell_scores_hw)
    margins_HW = rows.spread(columns, _mean_of_corners(node_margins_N.view(grid)))
    near_border = (~rows.spread(columns, agree_hw)).flatten().nonzero()[:, 0]
    if len(near_border):
        candidates_C = torch.unique(_corners(node_classes_N.view(grid))[:, ~agree_hw])
        logits_PQ = _interpolated(logits_NQ, rows, columns, near_border)
        sums_PC, masks_PQ = _sums(logits_PQ, class_scores_QK[:, candidates_C])
        best_P, winners_P = sums_PC.max(dim=1)
        classes_HW.view(-1)[near_border] = candidates_C[winners_P]
        scores_HW.view(-1)[near_border] = _shares(best_P, masks_PQ)
    return LabelMap(classes_HW, scores_HW, margins_HW)


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where the pixels of one axis lie between the nodes of the grid."""

    nodes: int  # that the image reaches; beyond them is padding
    lower: Tensor  # per pixel the node before it
    upper: Tensor  # and after it; the last node stands for what would follow
    weight: Tensor  # of the upper one

    @classmethod
    def of(cls, nodes: int, padded: int, resized: int, original: int, device: torch.device) -> Self:
        """Take half-pixel centres, from the original by way of the resized image to the grid."""
        centres = (torch.arange(original, dtype=torch.float32, device=device) + 0.5) * (
            resized / original
        )
        place = (centres * (nodes / padded) - 0.5).clamp(0, nodes - 1)
        lower = place.floor().long()
        upper = (lower + 1).clamp_max(nodes - 1)
        return cls(int(upper[-1]) + 1, lower, upper, place - lower)

    def spread(self, columns: "_Axis", cells_hw: Tensor) -> Tensor:
        """Return per pixel (H, W) the value of the cell that it lies in."""
        return cells_hw[self.lower].index_select(1, columns.lower)


def _sums(logits_NQ: Tensor, class_scores_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed class scores of every point, and its masks."""
    masks_NQ = logits_NQ.sigmoid()
    return masks_NQ @ class_scores_QK, masks_NQ


def _shares(best_N: Tensor, masks_NQ: Tensor) -> Tensor:
    """Return a class sum as its share of the evidence."""
    return best_N / masks_NQ.sum(dim=1).clamp_min(LEAST_EVIDENCE)


def _corners(values_hw: Tensor) -> Tensor:
    """Return the values (4, h, w) of the four nodes of every cell."""
    below = torch.cat([values_hw[1:], values_hw[-1:]])
    right = torch.cat([values_hw[:, 1:], values_hw[:, -1:]], dim=1)
    below_right = torch.cat([below[:, 1:], below[:, -1:]], dim=1)
    return torch.stack([values_hw, below, right, below_right])


def _all_equal(labels_hw: Tensor) -> Tensor:
    first_hw, *others = _corners(labels_hw)
    agree_hw: Tensor = (first_hw == others[0]) & (first_hw == others[1]) & (first_hw == others[2])
    return agree_hw


def _mean_of_corners(scores_hw: Tensor) -> Tensor:
    return _corners(scores_hw).mean(dim=0)


def _interpolated(logits_NQ: Tensor, rows: _Axis, columns: _Axis, pixels_P: Tensor) -> Tensor:
    """Return the logits (P, Q) of some pixels, given by their index in the flat image."""
    width = len(columns.lower)
    row_P, column_P = pixels_P // width, pixels_P % width
    left_P, right_P = columns.lower[column_P], columns.upper[column_P]
    across_P = columns.weight[column_P, None]
    upper_P, lower_P = rows.lower[row_P] * columns.nodes, rows.upper[row_P] * columns.nodes
    top_PQ = torch.lerp(logits_NQ[upper_P + left_P], logits_NQ[upper_P + right_P], across_P)
    bottom_PQ = torch.lerp(logits_NQ[lower_P + left_P], logits_NQ[lower_P + right_P], across_P)
    return torch.lerp(top_PQ, bottom_PQ, rows.weight[row_P, None])
