"""Proposals that are left out before any classifier sees them (approximate).

What is pruned is gone: it has no crop, no vector and no part in the sum of spec 2.7, unlike an
invalid proposal, which the reference boosts. Nothing here depends on a vocabulary.

Dimension key: Q proposals, h w grid of the masks' logits, N its cells inside the image.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from pipeline.masks import SoftMasks
from pipeline.models import Proposals
from pipeline.resize import Size

_OFFSET: Final = 1.0  # of the logits at which SAM compares a mask with itself


@dataclass(frozen=True)
class PruneSettings:
    """What a proposal must reach to stay; None asks for nothing. Measured on the masks' grid.

    `min_area` is a share of the image above the threshold. `min_stability` is the IoU of the masks
    at a threshold one logit higher and one lower (SAM's stability score). `min_won` is the share of
    the image where no other proposal's soft mask is larger.
    """

    mask_threshold: float = 0.5
    min_area: float | None = None
    min_stability: float | None = None
    min_won: float | None = None

    def keeps(self, masks: SoftMasks) -> Tensor:
        """Return which proposals stay (Q,); where none would, all do."""
        logits_QN = masks.image_cells().flatten(1)
        kept_Q = torch.ones(len(logits_QN), dtype=torch.bool, device=logits_QN.device)
        if not len(logits_QN):
            return kept_Q
        threshold = math.log(self.mask_threshold / (1 - self.mask_threshold))
        if self.min_area is not None:
            kept_Q &= _share(logits_QN > threshold) >= self.min_area
        if self.min_stability is not None:
            inner_Q = _share(logits_QN > threshold + _OFFSET)
            outer_Q = _share(logits_QN > threshold - _OFFSET)
            kept_Q &= inner_Q / outer_Q.clamp_min(1e-12) >= self.min_stability
        if self.min_won is not None:
            kept_Q &= _share(logits_QN >= logits_QN.amax(dim=0)) >= self.min_won
        return kept_Q if kept_Q.any() else torch.ones_like(kept_Q)


def prune(found: Proposals, settings: PruneSettings, padded: Size, size: Size) -> Proposals:
    """Return the proposals that stay, of an image of `size` that was padded to `padded`."""
    kept_Q = settings.keeps(SoftMasks(found.mask_logits_Qhw, padded, size))
    embeds_QD, void_Q = found.query_embeds_QD, found.void_logits_Q
    return replace(
        found,
        mask_logits_Qhw=found.mask_logits_Qhw[kept_Q],
        query_embeds_QD=None if embeds_QD is None else embeds_QD[kept_Q],
        void_logits_Q=None if void_Q is None else void_Q[kept_Q],
    )


def _share(flags_QN: Tensor) -> Tensor:
    return flags_QN.float().mean(dim=1)
