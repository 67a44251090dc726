"""From query scores and CLIP scores to a label map (spec 2.3, 2.5 to 2.7).

Dimension key: Q proposals, K class names, D embedding, V valid proposals, H W pixels, T rows of a
tile.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.resize import Size

# The reference multiplies cosines by this constant, not by CLIP's own logit_scale.
LOGIT_SCALE: Final = 100.0

# Bound on the floats of one tile of class scores and resized masks.
TILE_FLOATS: Final = 32 * 2**20


def query_probs(query_embeds_QD: Tensor, text_KD: Tensor, void_logits_Q: Tensor) -> Tensor:
    """Return P (Q, K): softmax over K classes and "no object", that column dropped as it is.

    Both embeddings are of unit length; `void_logits_Q` is the scaled cosine with the proposer's
    own no-object vector, so that it does not depend on the vocabulary.
    """
    class_logits_QK = LOGIT_SCALE * query_embeds_QD @ text_KD.T
    logits = torch.cat([class_logits_QK, void_logits_Q[:, None]], dim=1)
    return logits.softmax(dim=1)[:, :-1]


def region_probs(
    clip_embeds_VD: Tensor, text_KD: Tensor, logit_scale: float = LOGIT_SCALE
) -> Tensor:
    """Return C (V, K): softmax over the K classes alone."""
    return (logit_scale * clip_embeds_VD @ text_KD.T).softmax(dim=1)


def fuse(
    query_probs_QK: Tensor | None,
    region_probs_VK: Tensor | None,
    valid_Q: Tensor,
    seen_K: Tensor | None,
    weight: float,
    *,
    keep_invalid: bool = True,
) -> Tensor:
    """Return F (Q, K), the fused class scores of every proposal (spec 2.6).

    Geometric mean with exponent `weight` on the query score for seen classes and on the CLIP score
    for unseen ones; no flags means all unseen. An invalid proposal has CLIP scores of one, which
    boosts it (B-3), unless `keep_invalid` is off: its fused scores are then zero.
    Without `region_probs_VK` the query scores stand alone; without `query_probs_QK`, or with
    weight 0, the CLIP scores do, and invalid proposals then score zero everywhere.
    """
    if region_probs_VK is None:
        if query_probs_QK is None:
            raise ValueError("fuse needs query scores, CLIP scores, or both")
        return query_probs_QK
    num_classes = region_probs_VK.shape[1]
    if query_probs_QK is None or weight <= 0:
        clip_only_QK = region_probs_VK.new_zeros((len(valid_Q), num_classes))
        clip_only_QK[valid_Q] = region_probs_VK
        return clip_only_QK
    clip_QK = torch.ones_like(query_probs_QK)
    clip_QK[valid_Q] = region_probs_VK
    seen = torch.zeros(num_classes, dtype=torch.bool) if seen_K is None else seen_K
    query_exponent_K = torch.where(seen.to(clip_QK.device), weight, 1.0 - weight)
    fused_QK = query_probs_QK**query_exponent_K * clip_QK ** (1.0 - query_exponent_K)
    return fused_QK if keep_invalid else fused_QK * valid_Q[:, None]


@dataclass(frozen=True)
class LabelMap:
    """Per pixel the class index (H, W) int64 and its score in [0, 1], (H, W) float32.

    The score is the winner's share of evidence: sum of F*M over sum of M (the paper's formula);
    it is 0 where no mask covers the pixel.
    """

    classes_HW: Tensor
    scores_HW: Tensor

    @classmethod
    def of(cls, tiles: Iterable["ScoreTile"], size: Size, device: torch.device) -> "LabelMap":
        """Return the label of every pixel from the tiles of a score map (spec 2.7)."""
        classes = torch.zeros(size, dtype=torch.int64, device=device)
        scores = torch.zeros(size, dtype=torch.float32, device=device)
        for tile in tiles:
            best_TW, classes[tile.rows] = tile.scores_KTW.max(dim=0)
            scores[tile.rows] = best_TW / tile.evidence_TW.clamp_min(1e-12)
        return cls(classes, scores)


def label_map(class_scores_QK: Tensor, mask_probs_QHW: Tensor, size: Size) -> LabelMap:
    """Return the label of every pixel of the original image of `size` (spec 2.7)."""
    tiles = score_tiles(class_scores_QK, mask_probs_QHW, size)
    return LabelMap.of(tiles, size, mask_probs_QHW.device)


@dataclass(frozen=True, eq=False)
class ScoreTile:
    """Some rows of the score map S (K, T, W), and the sum of all masks there (T, W)."""

    rows: slice
    scores_KTW: Tensor
    evidence_TW: Tensor


def score_tiles(class_scores_QK: Tensor, mask_probs_QHW: Tensor, size: Size) -> Iterator[ScoreTile]:
    """Yield the score map S of the original image of `size`, from top to bottom.

    S = sum over q of F*M at the mask size, resized bilinearly. Resizing and mixing are both linear,
    so masks are resized and mixed in tiles of rows: S is never whole in memory. Without proposals
    it is 0.
    """
    height, width = size
    num_floats = width * sum(class_scores_QK.shape)
    rows_per_tile = max(1, TILE_FLOATS // num_floats)
    taps = bilinear_taps(mask_probs_QHW.shape[1], height, mask_probs_QHW.device)
    for top in range(0, height, rows_per_tile):
        rows = slice(top, min(top + rows_per_tile, height))
        masks_QTW = resize_rows(mask_probs_QHW, [tap[rows] for tap in taps], width)
        summed_KTW = torch.einsum("qk,qtw->ktw", class_scores_QK, masks_QTW)
        yield ScoreTile(rows, summed_KTW, masks_QTW.sum(dim=0))


def bilinear_taps(source: int, target: int, device: torch.device) -> list[Tensor]:
    """Return lower index, upper index and upper weight per target position (half-pixel centres)."""
    scale = source / target
    centre = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
    centre = centre.clamp_min(0.0)
    lower = centre.floor().long().clamp_max(source - 1)
    upper = (lower + 1).clamp_max(source - 1)
    return [lower, upper, centre - lower]


def resize_rows(values_QHW: Tensor, rows: list[Tensor], width: int) -> Tensor:
    """Return some rows of the bilinearly resized maps, at the full target width."""
    top, bottom, down = rows
    if not len(values_QHW):  # interpolate refuses an empty batch
        return values_QHW.new_zeros((0, len(top), width))
    strip_QTW = torch.lerp(values_QHW[:, top], values_QHW[:, bottom], down[None, :, None])
    # The height stays, so this resizes along the width alone.
    return interpolate(
        strip_QTW[None], size=(len(top), width), mode="bilinear", align_corners=False
    )[0]
