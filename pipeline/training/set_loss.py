"""The loss of a set of masks: Hungarian matching, then class, focal and dice losses (spec 3.1).

All decoder layers and images are matched and scored at once; transformers' `MaskFormerLoss` loops
over both, which costs a third of a training step on a CPU.

Dimension key: L decoder layers, B images, Q queries, M masks (padded to the most of one image),
K classes, R matched pairs, P pixels, h w mask grid, H W target grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, softplus

from pipeline.models.maskformer import LayerOutput
from pipeline.training.targets import Targets

FOCAL_ALPHA: Final = 0.25
LOSSES: Final = ("loss_ce", "loss_mask", "loss_dice")  # the columns of `set_losses`


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses, which are those of the matching cost too; the paper's by default.

    `matching_targets` says how targets come down to the grid of the logits for matching: "nearest"
    takes the top left sample of every cell, as in the reference, "area" the mean.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1
    matching_targets: Literal["nearest", "area"] = "nearest"

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of the columns of `set_losses`."""
        return self.class_weight, self.mask_weight, self.dice_weight


PAPER: Final = LossSettings()


@dataclass(frozen=True)
class Totals:
    """What the losses are divided by: counted over a batch, or over all parts of a batch.

    A batch in parts (accumulated, or on several workers) has the loss of the whole batch when every
    part is divided by the totals of all: the sum of the parts' losses is then the batch's loss.
    """

    masks: int
    pairs: int  # queries that are given a mask: one each, while there are queries left
    queries: int  # of all images, with a mask or without

    @classmethod
    def of(cls, counts: Sequence[int], queries: int) -> Totals:
        """Count for images of so many masks each, and so many queries per image."""
        pairs = sum(min(count, queries) for count in counts)
        return cls(sum(counts), pairs, queries * len(counts))

    def class_weight(self, no_object_weight: float) -> float:
        """Return the sum of the class weights of all queries."""
        return self.pairs + no_object_weight * (self.queries - self.pairs)


def set_losses(
    layers: Sequence[LayerOutput],
    text_KD: Tensor,
    targets: Targets,
    settings: LossSettings = PAPER,
    totals: Totals | None = None,
) -> Tensor:
    """Return the class, focal and dice losses of every decoder layer (L, 3), not yet weighted.

    In the paper's recipe the target grid is the padded picture. Logits are upsampled to it; sums
    over masks are divided by the number of target masks, at least 1. `totals` are those of the
    whole batch where this is a part of one.
    """
    totals = totals or Totals.of(targets.counts, layers[0].void_logits_BQ.shape[1])
    mask_logits_LBQhw = torch.stack([layer.mask_logits_BQhw for layer in layers])
    class_logits_LBQK = torch.stack([layer.class_logits(text_KD) for layer in layers])
    costs_LBQM = matching_costs(mask_logits_LBQhw, class_logits_LBQK, targets, settings)
    pairs_4R = match(costs_LBQM, targets.counts).to(text_KD.device)
    class_loss_L = _class_losses(class_logits_LBQK, targets, pairs_4R, settings.no_object_weight)
    class_loss_L = class_loss_L / totals.class_weight(settings.no_object_weight)
    focal_R, dice_R = _mask_losses(mask_logits_LBQhw, targets, pairs_4R)
    per_layer = (len(layers), len(focal_R) // len(layers))  # every layer has as many pairs
    focal_L, dice_L = (
        loss_R.view(per_layer).sum(1) / max(1, totals.masks) for loss_R in (focal_R, dice_R)
    )
    return torch.stack([class_loss_L, focal_L, dice_L], dim=1)


def total_loss(losses_L3: Tensor, settings: LossSettings = PAPER) -> Tensor:
    """Return what is minimised: the weighted sum of all losses, every layer counting alike."""
    return (losses_L3 * losses_L3.new_tensor(settings.weights)).sum()


def named_losses(losses_L3: Tensor) -> dict[str, float]:
    """Return losses under the reference's names: the last layer bare, the earlier ones numbered."""
    *earlier, last = losses_L3.tolist()
    named = dict(zip(LOSSES, last, strict=True))
    for layer, losses in enumerate(earlier):
        named |= {f"{name}_{layer}": loss for name, loss in zip(LOSSES, losses, strict=True)}
    return named


@torch.no_grad()
def matching_costs(
    mask_logits_LBQhw: Tensor,
    class_logits_LBQK: Tensor,
    targets: Targets,
    settings: LossSettings = PAPER,
) -> Tensor:
    """Return what it costs to give each mask to each query (L, B, Q, M), at the logits' grid."""
    logits_LBQP = mask_logits_LBQhw.flatten(3)
    truth_BMhw = interpolate(
        targets.masks_BMHW, size=mask_logits_LBQhw.shape[-2:], mode=settings.matching_targets
    )
    truth_BMP = truth_BMhw.flatten(2)
    positive, negative = focal_terms(logits_LBQP)
    focal_LBQM = torch.einsum("lbqp,bmp->lbqm", positive - negative, truth_BMP)
    focal_LBQM = (focal_LBQM + negative.sum(-1, keepdim=True)) / truth_BMP.shape[-1]
    probs_LBQP = logits_LBQP.sigmoid()
    overlap_LBQM = torch.einsum("lbqp,bmp->lbqm", probs_LBQP, truth_BMP)
    sizes_LBQM = probs_LBQP.sum(-1, keepdim=True) + truth_BMP.sum(-1)[:, None]
    dice_LBQM = 1 - (2 * overlap_LBQM + 1) / (sizes_LBQM + 1)
    labels_LBQM = targets.labels_BM[:, None].expand_as(dice_LBQM)
    class_LBQM = -class_logits_LBQK.softmax(-1).gather(-1, labels_LBQM)
    return (
        settings.class_weight * class_LBQM
        + settings.mask_weight * focal_LBQM
        + settings.dice_weight * dice_LBQM
    )


def match(costs_LBQM: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the cheapest pairs as rows of layer, image, query and mask positions (4, R).

    A query whose costs are no numbers is taken first: the loss will then be none either.
    """
    pairs = []
    costs = np.nan_to_num(costs_LBQM.cpu().numpy(), nan=-1e9)
    for layer, costs_BQM in enumerate(costs):
        for image, count in enumerate(counts):
            queries, masks = linear_sum_assignment(costs_BQM[image, :, :count])
            where = np.full_like(queries, layer), np.full_like(queries, image)
            pairs.append(np.stack([*where, queries, masks]))
    return torch.from_numpy(np.concatenate(pairs, axis=1))


def focal_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the focal loss of every logit if its truth is 1, and if it is 0 (gamma 2)."""
    probs = logits.sigmoid()
    positive = FOCAL_ALPHA * (1 - probs) ** 2 * softplus(-logits)
    negative = (1 - FOCAL_ALPHA) * probs**2 * softplus(logits)
    return positive, negative


def _class_losses(
    class_logits_LBQK: Tensor, targets: Targets, pairs_4R: Tensor, no_object_weight: float
) -> Tensor:
    """Return each layer's weighted sum of cross-entropy; a query without a mask wants no object."""
    layer_R, image_R, query_R, mask_R = pairs_4R
    void = class_logits_LBQK.shape[-1] - 1
    wanted_LBQ = torch.full(class_logits_LBQK.shape[:3], void, device=class_logits_LBQK.device)
    wanted_LBQ[layer_R, image_R, query_R] = targets.labels_BM[image_R, mask_R]
    weights_K = class_logits_LBQK.new_ones(void + 1)
    weights_K[void] = no_object_weight
    weighted = cross_entropy(
        class_logits_LBQK.flatten(0, 2), wanted_LBQ.flatten(), weights_K, reduction="none"
    ).view_as(wanted_LBQ)
    return weighted.sum((1, 2))


def _mask_losses(
    mask_logits_LBQhw: Tensor, targets: Targets, pairs_4R: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the focal (mean over pixels) and the dice loss of every pair, on the target grid."""
    layer_R, image_R, query_R, mask_R = pairs_4R
    truth_RP = targets.masks_BMHW[image_R, mask_R].flatten(1)
    logits_RP = interpolate(
        mask_logits_LBQhw[layer_R, image_R, query_R][:, None],
        size=targets.masks_BMHW.shape[-2:],
        mode="bilinear",
        align_corners=False,
    ).flatten(1)
    positive_RP, negative_RP = focal_terms(logits_RP)
    focal_RP = positive_RP * truth_RP + negative_RP * (1 - truth_RP)
    probs_RP = logits_RP.sigmoid()
    overlap_R = (probs_RP * truth_RP).sum(1)
    dice_R = 1 - (2 * overlap_R + 1) / (probs_RP.sum(1) + truth_RP.sum(1) + 1)
    return focal_RP.mean(1), dice_R
