"""From query scores and CLIP scores to a label map (spec 2.3, 2.5 to 2.7).

Dimension key: Q proposals, K class names, D embedding, V valid proposals, H W pixels, T rows of a
tile, P its pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pipeline.bilinear import RowTaps, bilinear_taps, resize_rows
from pipeline.contenders import Contenders
from pipeline.masks import SoftMasks
from pipeline.resize import Size
from pipeline.segments import IGNORE, least_score

# The reference multiplies cosines by this constant, not by CLIP's own logit_scale.
LOGIT_SCALE: Final = 100.0

# Bound on the floats of one tile of class scores and resized masks: what stays in a core's cache,
# and comes from memory that the process already has. A GPU wants fewer and larger tiles.
TILE_FLOATS: Final = 2**19
_TIMES_ON_GPU: Final = 128
# Of the masks of a tile before they are resized, which are larger only where the original is small:
# at up to half the resized size they are made at once.
_TIMES_OF_MASKS: Final = 4

_FEW_CLASSES: Final = 32  # are multiplied faster than it is found out which of them contend

LEAST_EVIDENCE: Final = 1e-12  # instead of none, by which nothing can be divided


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
    clip_QK = region_probs_VK
    if len(region_probs_VK) < len(valid_Q):
        clip_QK = torch.ones_like(query_probs_QK)
        clip_QK[valid_Q] = region_probs_VK
    seen = torch.zeros(num_classes, dtype=torch.bool) if seen_K is None else seen_K
    query_exponent_K = torch.where(seen.to(clip_QK.device), weight, 1.0 - weight)
    fused_QK = query_probs_QK**query_exponent_K * clip_QK ** (1.0 - query_exponent_K)
    return fused_QK if keep_invalid else fused_QK * valid_Q[:, None]


@dataclass(frozen=True)
class LabelMap:
    """Per pixel the class index (H, W) int64, its score and its margin in [0, 1], (H, W) float32.

    The score is the winner's share of evidence: sum of F*M over sum of M (the paper's formula).
    The margin is its lead over the second class, as a share of its own sum of F*M: 1 where it has
    no rival. Both are 0 where no mask covers the pixel.
    """

    classes_HW: Tensor
    scores_HW: Tensor
    margins_HW: Tensor

    @classmethod
    def of(cls, tiles: Iterable["ScoreTile"], size: Size, device: torch.device) -> "LabelMap":
        """Return the label of every pixel from the tiles of a score map (spec 2.7).

        The tiles' scores are used up.
        """
        classes = torch.zeros(size, dtype=torch.int64, device=device)
        scores = torch.zeros(size, dtype=torch.float32, device=device)
        margins = torch.zeros(size, dtype=torch.float32, device=device)
        for tile in tiles:
            best_TW, winners_TW = tile.scores_KTW.max(dim=0)
            scores[tile.rows] = best_TW / tile.evidence_TW.clamp_min(LEAST_EVIDENCE)
            margins[tile.rows] = lead(tile.scores_KTW, best_TW, winners_TW, dim=0)
            known = tile.classes_K
            classes[tile.rows] = winners_TW if known is None else known[winners_TW]
        return cls(classes, scores, margins)

    def kept(self, min_score: float) -> "LabelMap":
        """Return the map with class -1 where a pixel is of no segment.

        That is where its score is below `min_score`, and where there is no evidence (score 0).
        """
        is_kept_HW = self.scores_HW >= least_score(min_score)
        classes_HW = self.classes_HW.where(is_kept_HW, IGNORE)
        return LabelMap(classes_HW, self.scores_HW, self.margins_HW)

    def occurring(self) -> Tensor:
        """Return the classes that occur, in ascending order."""
        return (self.classes_HW.flatten() + 1).bincount()[1:].nonzero()[:, 0]

    def cpu(self) -> "LabelMap":
        """Return the same map in the memory of the host."""
        return LabelMap(self.classes_HW.cpu(), self.scores_HW.cpu(), self.margins_HW.cpu())


def lead(class_sums: Tensor, best: Tensor, winners: Tensor, dim: int) -> Tensor:
    """Return how far the winner is ahead of the second class, as a share of its own sum.

    `best` and `winners` are the maximum and its place along `dim`; the winners' sums are blotted
    out, for a second maximum without places costs a fraction of the two best of a sort.
    """
    second = class_sums.scatter_(dim, winners.unsqueeze(dim), 0.0).amax(dim=dim)
    return (best - second) / best.clamp_min(LEAST_EVIDENCE)


def label_map(class_scores_QK: Tensor, masks: Tensor | SoftMasks, size: Size) -> LabelMap:
    """Return the label of every pixel of the original image of `size` (spec 2.7)."""
    contenders = None
    if isinstance(masks, SoftMasks) and _narrows(class_scores_QK):
        contenders = Contenders.of(class_scores_QK, masks)
    tiles = score_tiles(class_scores_QK, masks, size, contenders)
    return LabelMap.of(tiles, size, class_scores_QK.device)


def _narrows(class_scores_QK: Tensor) -> bool:
    """Return whether finding the classes that contend costs less than it saves."""
    num_proposals, num_classes = class_scores_QK.shape
    on_cpu = class_scores_QK.device.type == "cpu"
    return on_cpu and num_proposals > 0 and num_classes >= _FEW_CLASSES


@dataclass(frozen=True, eq=False)
class ScoreTile:
    """Some rows of the score map S (K, T, W), and the sum of all masks there (T, W)."""

    rows: slice
    scores_KTW: Tensor
    evidence_TW: Tensor
    classes_K: Tensor | None = None  # whose scores they are; None: all


def score_tiles(
    class_scores_QK: Tensor,
    masks: Tensor | SoftMasks,
    size: Size,
    contenders: Contenders | None = None,
) -> Iterator[ScoreTile]:
    """Yield the score map S of the original image of `size`, from top to bottom.

    S = sum over q of F*M at the mask size, resized bilinearly. Resizing and mixing are both linear,
    so masks, either (Q, H, W) or still to be made, are resized and mixed in tiles of rows: neither
    S nor masks that are still to be made are ever whole in memory. Without proposals S is 0.
    With `contenders`, tiles hold the classes that may be first or second there, and no others.
    """
    height, width = size
    resized = _ResizedMasks.of(masks, size)
    class_scores_KQ, classes_K = class_scores_QK.T.contiguous(), None
    scores_KQ, top = class_scores_KQ, 0
    while top < height:
        # What the tile above needed, this one will.
        count = rows_per_tile(width * sum(scores_KQ.shape), scores_KQ.device)
        rows = slice(top, min(top + count, height))
        if contenders is not None:
            classes_K = contenders.among(resized.down.needed(rows))
            scores_KQ = class_scores_KQ[classes_K]
        masks_TWQ = resized.rows(rows)
        scores_KP = scores_KQ @ masks_TWQ.flatten(0, 1).T
        scores_KTW = scores_KP.view(-1, *masks_TWQ.shape[:2])
        yield ScoreTile(rows, scores_KTW, masks_TWQ.sum(dim=2), classes_K)
        top = rows.stop


@dataclass(frozen=True, eq=False)
class _ResizedMasks:
    """Masks at the size of the original, of which rows are made when they are asked for."""

    masks: Tensor | SoftMasks  # (H, W, Q), or still to be made
    down: RowTaps
    across: Sequence[Tensor]

    @classmethod
    def of(cls, masks: Tensor | SoftMasks, size: Size) -> "_ResizedMasks":
        if isinstance(masks, SoftMasks):
            (height, width), device = masks.size, masks.logits_Qhw.device
        else:
            masks = masks.permute(1, 2, 0).contiguous()
            (height, width), device = masks.shape[:2], masks.device
        down = RowTaps.of(height, size[0])
        return cls(masks, down, bilinear_taps(width, size[1], device))

    def rows(self, rows: slice) -> Tensor:
        """Return some rows of every mask (T, W, Q)."""
        masks = self.masks
        needed = self.down.needed(rows)
        if not isinstance(masks, SoftMasks):
            return resize_rows(masks[needed], self.down.within(rows), self.across)
        reached = (needed.stop - needed.start) * masks.size[1] * len(masks.logits_Qhw)
        floats_per_row = reached // (rows.stop - rows.start) // _TIMES_OF_MASKS
        count = rows_per_tile(floats_per_row, masks.logits_Qhw.device)
        parts = []
        for top in range(rows.start, rows.stop, count):
            part = slice(top, min(top + count, rows.stop))
            masks_HWQ = masks.rows(self.down.needed(part), among=needed)
            parts.append(resize_rows(masks_HWQ, self.down.within(part), self.across))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def rows_per_tile(floats_per_row: int, device: torch.device) -> int:
    """Return how many rows of the original image a tile holds; at least 1."""
    budget = TILE_FLOATS * (1 if device.type == "cpu" else _TIMES_ON_GPU)
    return max(1, budget // max(1, floats_per_row))
