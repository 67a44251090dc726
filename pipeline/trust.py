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
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fusion import LEAST_EVIDENCE
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
    scores: HeadScores, masks: SoftMasks, kept_HW: Tensor, classes_N: Tensor
) -> SegmentTrust:
    """Return disagreement and stability of the segments of a map (`LabelMap.kept`), of each class
    that occurs in it.

    A segment's pixels are those at the nodes of the grid; one that has no node is taken whole, each
    pixel with the masks of the nearest node.
    """
    rows, columns = (_Axis.of(masks, axis, length) for axis, length in enumerate(kept_HW.shape))
    kept_hw = kept_HW.index_select(0, rows.pixels(kept_HW.device))
    kept_hw = kept_hw.index_select(1, columns.pixels(kept_HW.device))
    logits_Qhw = masks.logits_Qhw[:, : rows.nodes, : columns.nodes]
    masks_PQ = logits_Qhw.flatten(1).sigmoid().T
    is_of_NP = (classes_N[:, None] == kept_hw.flatten()).float()
    weights_NQ = is_of_NP @ masks_PQ
    for place in (is_of_NP.amax(dim=1) == 0).nonzero()[:, 0].tolist():
        row_P, column_P = (kept_HW == classes_N[place]).nonzero(as_tuple=True)
        nearest_P = rows.nearest(row_P) * columns.nodes + columns.nearest(column_P)
        weights_NQ[place] = masks_PQ[nearest_P].sum(dim=0)
    weights_NQ *= scores.fused_QK.T[classes_N]
    disagreement_N = torch.full(classes_N.shape, torch.nan)
    if scores.query_QK is not None and scores.region_VK is not None:
        query_VK, weights_NV = scores.query_QK, weights_NQ
        if len(scores.region_VK) < len(scores.valid_Q):
            query_VK, weights_NV = query_VK[scores.valid_Q], weights_NQ[:, scores.valid_Q]
        disagreement_N = _weighted(weights_NV, divergence(query_VK, scores.region_VK))
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
    # Entropies of both and of their mean, in one go.
    probs_3QK = torch.stack([p_QK, q_QK, (p_QK + q_QK) / 2])
    entropy_3Q = torch.special.entr(probs_3QK).sum(dim=2)
    nats_Q = entropy_3Q[2] - (entropy_3Q[0] + entropy_3Q[1]) / 2
    bits_Q: Tensor = (nats_Q / math.log(2)).clamp(0, 1)
    return bits_Q


def stability(logits_Qhw: Tensor) -> Tensor:
    """Return the stability (Q,) of masks; 0 for one that is nowhere above the lower threshold."""
    # Ones and zeros of the logits' own type: torch compares these at once, and booleans one by one.
    certain_Q, possible_Q = (
        torch.sub(logits_Qhw, threshold).gt_(0).flatten(1).sum(dim=1)
        for threshold in (STABILITY_OFFSET, -STABILITY_OFFSET)
    )
    return certain_Q / possible_Q.clamp_min(1)


@dataclass(frozen=True)
class _Axis:
    """The nodes of one axis that the image reaches, and its pixels, half-pixel centres both."""

    length: int  # pixels
    per_node: float  # pixels
    nodes: int

    @classmethod
    def of(cls, masks: SoftMasks, axis: int, length: int) -> Self:
        num_nodes = masks.logits_Qhw.shape[1 + axis]
        per_node = masks.padded[axis] / num_nodes * length / masks.size[axis]
        return cls(length, per_node, min(num_nodes, max(1, round(length / per_node))))

    def pixels(self, device: torch.device) -> Tensor:
        """Return the pixel nearest to each node."""
        places = (np.arange(self.nodes) + 0.5) * self.per_node - 0.5
        return _nearest(places, self.length).to(device)

    def nearest(self, pixels_P: Tensor) -> Tensor:
        """Return the node nearest to each of some pixels."""
        places = (pixels_P.cpu().numpy() + 0.5) / self.per_node - 0.5
        return _nearest(places, self.nodes).to(pixels_P.device)


def _nearest(places: NDArray[np.floating[Any]], count: int) -> Tensor:
    return torch.from_numpy(places.round().astype(np.int64).clip(0, count - 1))


def _weighted(weights_NQ: Tensor, values_Q: Tensor) -> Tensor:
    """Return means (N,) of values; NaN where nothing has weight."""
    return (weights_NQ @ values_Q) / weights_NQ.sum(dim=1)
