"""Masks that are nearly the same share one CLIP vector (approximate).

Dimension key: Q proposals, K those that are shown to CLIP, V their valid ones, D embedding, N cells
of the masks' grid inside the image.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.masks import SoftMasks
from pipeline.models import RegionEmbedder, RegionEmbeds


class SharedVectors:
    """Asks another classifier about one of every group of duplicates."""

    def __init__(self, embedder: RegionEmbedder, min_iou: float, min_prob: float) -> None:
        self._embedder, self._min_iou, self._min_prob = embedder, min_iou, min_prob

    @torch.inference_mode()
    def embed(self, regions: Iterable[tuple[Tensor, Tensor | SoftMasks]]) -> list[RegionEmbeds]:
        """Return the vectors of all valid proposals; a duplicate is as valid as what it repeats."""
        owners: list[Tensor] = []
        found = self._embedder.embed(self._distinct(regions, owners))
        return [_shared(*pair) for pair in zip(found, owners, strict=True)]

    def _distinct(
        self, regions: Iterable[tuple[Tensor, Tensor | SoftMasks]], owners: list[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor | SoftMasks]]:
        for image_3HW, masks in regions:
            owner_Q = owners_of(masks, self._min_iou, self._min_prob)
            owners.append(owner_Q)
            shown_K = torch.unique(owner_Q)
            if isinstance(masks, SoftMasks):
                yield image_3HW, replace(masks, logits_Qhw=masks.logits_Qhw[shown_K])
            else:
                yield image_3HW, masks[shown_K]


def owners_of(masks: Tensor | SoftMasks, min_iou: float, min_prob: float) -> Tensor:
    """Return for every mask the index (Q,) of the one whose vector it takes, mostly its own.

    The surest mask first (by its mean probability inside, MaskFormer's quality of a mask), every
    mask that still has an owner of its own takes those that overlap with it by `min_iou`. IoUs are
    of the binary masks on their grid; an empty one overlaps with nothing.
    """
    if isinstance(masks, SoftMasks):
        cells_QN, threshold = masks.image_cells().flatten(1), math.log(min_prob / (1 - min_prob))
        probs_QN = cells_QN.sigmoid()
    else:
        cells_QN = probs_QN = masks.flatten(1)
        threshold = min_prob
    inside_QN = (cells_QN > threshold).float()
    area_Q = inside_QN.sum(dim=1)
    both_QQ = inside_QN @ inside_QN.T
    either_QQ = area_Q[:, None] + area_Q - both_QQ
    overlaps = (both_QQ >= min_iou * either_QQ.clamp_min(1)).cpu().numpy()
    sureness_Q = (probs_QN * inside_QN).sum(dim=1) / area_Q.clamp_min(1)
    owner_Q = torch.full((len(cells_QN),), -1)
    owners = owner_Q.numpy()
    for mask in sureness_Q.argsort(descending=True, stable=True).tolist():
        if owners[mask] < 0:
            owners[overlaps[mask] & (owners < 0)] = mask
            owners[mask] = mask
    return owner_Q.to(cells_QN.device)


def _shared(found: RegionEmbeds, owner_Q: Tensor) -> RegionEmbeds:
    """Return what every proposal has, from what the shown ones have."""
    shown_Q = torch.searchsorted(torch.unique(owner_Q), owner_Q)  # position among the shown ones
    valid_Q = found.valid_Q[shown_Q]
    row_K = found.valid_Q.cumsum(0) - 1
    return RegionEmbeds(valid_Q, found.clip_embeds_VD[row_K[shown_Q[valid_Q]]])
