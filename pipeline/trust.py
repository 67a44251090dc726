"""How far to trust a segment: what its masks say, beside the margin of its label map.

Margin: the winner's lead over the second class as a share of its own summed score, mean over the
segment's pixels (`LabelMap`). The two measures here belong to proposals, and a segment has them
from the proposals that it was made of: proposal q weighs F_qk (its fused score of the segment's
class k) times the sum of its mask over the segment. The masks are looked at where they are, at the
nodes of their grid of stride 4, so that memory and time grow with the masks.

Disagreement of a proposal: Jensen-Shannon divergence, in bits, between the query head's and CLIP's
class probabilities (Lin 1991; 0: the same, 1: nothing in common); "no object" is left out.
Proposals without a crop have none and do not count.

Stability of a proposal: nodes with a logit above +1 over those above -1, that is the IoU of its
mask with itself under a shifted threshold (SAM's stability score, Kirillov et al. 2023).

Dimension key: Q proposals, V valid ones, K class names, N classes in the image, P sampled pixels,
h w grid of mask logits, H W original pixels.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fusion import LEAST_EVIDENCE, LabelMap
from pipeline.masks import SoftMasks

STABILITY_OFFSET: Final = 1.0  # of the logits, as in SAM


@dataclass(frozen=True, eq=False)
class HeadScores:
    """What was said of the proposals of an image: by both heads, and by both together."""

    query_QK: Tensor | None  # with "no object" left out
    region_VK: Tensor | None  # CLIP's, of proposals with a crop
    valid_Q: Tensor
    fused_QK: Tensor


@dataclass(frozen=True, eq=False)
class SegmentTrust:
    """Disagreement and stability (N,) of the classes of an image; NaN where there is none."""

    classes_N: NDArray[np.int64]
    disagreement_N: NDArray[np.float32]
    stability_N: NDArray[np.float32]

    def of(self, class_index: int) -> dict[str, Any]:
        """Return both values of a segment as columns of SEGMENT."""
        place = self.classes_N.searchsorted(class_index)
        found = {
            "disagreement": float(self.disagreement_N[place]),
            "stability": float(self.stability_N[place]),
        }
        return {name: None if np.isnan(value) else value for name, value in found.items()}


def segment_trust(
    scores: HeadScores, masks: SoftMasks, labels: LabelMap, min_score: float
) -> SegmentTrust:
    """Return disagreement and stability of the segments that `labels` are encoded as.

    A segment's pixels are those at the nodes of the grid; one that has no node is taken whole, each
    pixel with the masks of the nearest node.
    """
    is_kept_HW = (labels.scores_HW >= min_score) & (labels.scores_HW > 0)
    kept_HW = labels.classes_HW.where(is_kept_HW, -1)
    rows, columns = _Nodes.of(masks, 0, kept_HW), _Nodes.of(masks, 1, kept_HW)
    at_nodes_P = kept_HW[rows.pixels][:, columns.pixels].flatten()
    logits_Qhw = masks.logits_Qhw[:, : len(rows.pixels), : len(columns.pixels)]
    nodes_P = torch.arange(len(at_nodes_P), device=kept_HW.device)
    counts_K = (kept_HW + 1).flatten().bincount(minlength=scores.fused_QK.shape[1] + 1)[1:]
    counted_K = (at_nodes_P + 1).bincount(minlength=len(counts_K) + 1)[1:]
    without_node_K = (counts_K > 0) & (counted_K == 0)
    if without_node_K.any():
        whole_P = (is_kept_HW & without_node_K[kept_HW.clamp_min(0)]).flatten().nonzero()[:, 0]
        width = kept_HW.shape[1]
        nearest_P = rows.nearest[whole_P // width] * len(columns.pixels)
        nodes_P = torch.cat([nodes_P, nearest_P + columns.nearest[whole_P % width]])
        at_nodes_P = torch.cat([at_nodes_P, kept_HW.flatten()[whole_P]])
    classes_N = counts_K.nonzero()[:, 0]
    weights_NQ = _mask_mass(logits_Qhw, nodes_P, at_nodes_P, classes_N, len(counts_K))
    weights_NQ *= scores.fused_QK.T[classes_N]
    disagreement_N = torch.full(classes_N.shape, torch.nan)
    if scores.query_QK is not None and scores.region_VK is not None:
        between_V = divergence(scores.query_QK[scores.valid_Q], scores.region_VK)
        disagreement_N = _weighted(weights_NQ[:, scores.valid_Q], between_V)
    return SegmentTrust(
        classes_N.cpu().numpy(),
        disagreement_N.cpu().numpy(),
        _weighted(weights_NQ, stability(logits_Qhw)).cpu().numpy(),
    )


def divergence(first_QK: Tensor, second_QK: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (Q,) in bits of scores, each row taken to sum to 1."""
    p_QK, q_QK = (
        scores / scores.sum(dim=1, keepdim=True).clamp_min(LEAST_EVIDENCE)
        for scores in (first_QK, second_QK)
    )
    mixed_QK = (p_QK + q_QK) / 2
    nats_Q = _entropy(mixed_QK) - (_entropy(p_QK) + _entropy(q_QK)) / 2
    return (nats_Q / math.log(2)).clamp(0, 1)


def stability(logits_Qhw: Tensor) -> Tensor:
    """Return the stability (Q,) of masks; 0 for one that is nowhere above the lower threshold."""
    certain_Q = (logits_Qhw > STABILITY_OFFSET).flatten(1).sum(dim=1)
    possible_Q = (logits_Qhw > -STABILITY_OFFSET).flatten(1).sum(dim=1)
    return certain_Q / possible_Q.clamp_min(1)


@dataclass(frozen=True, eq=False)
class _Nodes:
    """The nodes of one axis that the image reaches, and its pixels, half-pixel centres both."""

    pixels: Tensor  # the pixel nearest to each node
    nearest: Tensor  # the node nearest to each pixel

    @classmethod
    def of(cls, masks: SoftMasks, axis: int, image_HW: Tensor) -> "_Nodes":
        length, device = image_HW.shape[axis], image_HW.device
        num_nodes = masks.logits_Qhw.shape[1 + axis]
        per_node = masks.padded[axis] / num_nodes * length / masks.size[axis]  # pixels
        reached = min(num_nodes, max(1, round(length / per_node)))
        nodes = (torch.arange(reached, device=device) + 0.5) * per_node - 0.5
        places = (torch.arange(length, device=device) + 0.5) / per_node - 0.5
        return cls(
            nodes.round().long().clamp(0, length - 1), places.round().long().clamp(0, reached - 1)
        )


def _mask_mass(
    logits_Qhw: Tensor, nodes_P: Tensor, labels_P: Tensor, classes_N: Tensor, num_classes: int
) -> Tensor:
    """Return the sum (N, Q) of every mask over the sampled pixels of every class."""
    is_labelled_P = labels_P >= 0
    masks_PQ = logits_Qhw.flatten(1).T[nodes_P[is_labelled_P]].sigmoid()
    mass_KQ = masks_PQ.new_zeros((num_classes, masks_PQ.shape[1]))
    return mass_KQ.index_add_(0, labels_P[is_labelled_P], masks_PQ)[classes_N]


def _weighted(weights_NQ: Tensor, values_Q: Tensor) -> Tensor:
    """Return means (N,) of values; NaN where nothing has weight."""
    return (weights_NQ @ values_Q) / weights_NQ.sum(dim=1)


def _entropy(probs_QK: Tensor) -> Tensor:
    entropy_Q: Tensor = torch.special.entr(probs_QK).sum(dim=1)
    return entropy_Q
