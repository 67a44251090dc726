"""The loss of a set of masks: Hungarian matching, then class, focal and dice losses (spec 3.1).

All decoder layers and images are matched and scored at once; transformers' `MaskFormerLoss` loops
over both, which costs a third of a training step on a CPU.

Dimension key: L decoder layers, B images, Q queries, M masks (padded to the most of one image),
K classes, R matched pairs, P pixels, h w mask grid, H W target grid, twice as fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, softplus

from pipeline.models.maskformer import LayerOutput

CLASS_WEIGHT: Final = 1.0
FOCAL_WEIGHT: Final = 20.0
DICE_WEIGHT: Final = 1.0
NO_OBJECT_WEIGHT: Final = 0.1
FOCAL_ALPHA: Final = 0.25


@dataclass(frozen=True, eq=False)
class Targets:
    """Masks of every image, at half resolution, as the share of a cell that they cover.

    Image b has `counts[b]` masks; the rest of its row is padding.
    """

    labels_BM: Tensor
    masks_BMHW: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, labels: Sequence[Tensor], masks: Sequence[Tensor]) -> Targets:
        """Stack class positions (M,) and masks (M, H, W) of every image, padded with zeros."""
        return cls(
            torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True),
            torch.nn.utils.rnn.pad_sequence(list(masks), batch_first=True),
            tuple(len(row) for row in labels),
        )

    def to(self, device: torch.device) -> Targets:
        """Return the same targets on a device."""
        return Targets(self.labels_BM.to(device), self.masks_BMHW.to(device), self.counts)


def set_loss(layers: Sequence[LayerOutput], text_KD: Tensor, targets: Targets) -> Tensor:
    """Return the weighted class, focal and dice losses (3,), summed over decoder layers."""
    mask_logits_LBQhw = torch.stack([layer.mask_logits_BQhw for layer in layers])
    class_logits_LBQK = torch.stack([layer.class_logits(text_KD) for layer in layers])
    pairs = match(mask_logits_LBQhw, class_logits_LBQK, targets)
    layer_R, image_R, query_R, mask_R = pairs.to(text_KD.device)

    void = class_logits_LBQK.shape[-1] - 1
    wanted_LBQ = torch.full(class_logits_LBQK.shape[:3], void, device=text_KD.device)
    wanted_LBQ[layer_R, image_R, query_R] = targets.labels_BM[image_R, mask_R]
    class_weights_K = text_KD.new_ones(void + 1)
    class_weights_K[void] = NO_OBJECT_WEIGHT
    # Every layer has as many pairs, so the mean over all is the mean of the layers' means.
    class_loss = len(layers) * cross_entropy(
        class_logits_LBQK.flatten(0, 2), wanted_LBQ.flatten(), class_weights_K
    )

    num_masks = max(1, sum(targets.counts))
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
    return torch.stack(
        [
            CLASS_WEIGHT * class_loss,
            FOCAL_WEIGHT * focal_RP.mean(1).sum() / num_masks,
            DICE_WEIGHT * dice_R.sum() / num_masks,
        ]
    )


@torch.no_grad()
def match(mask_logits_LBQhw: Tensor, class_logits_LBQK: Tensor, targets: Targets) -> Tensor:
    """Return the cheapest pairs as rows of layer, image, query and mask positions (4, R)."""
    logits_LBQP = mask_logits_LBQhw.flatten(3)
    truth_BMP = avg_pool2d(targets.masks_BMHW, 2).flatten(2)
    positive, negative = focal_terms(logits_LBQP)
    focal_LBQM = torch.einsum("lbqp,bmp->lbqm", positive - negative, truth_BMP)
    focal_LBQM = (focal_LBQM + negative.sum(-1, keepdim=True)) / truth_BMP.shape[-1]
    probs_LBQP = logits_LBQP.sigmoid()
    overlap_LBQM = torch.einsum("lbqp,bmp->lbqm", probs_LBQP, truth_BMP)
    sizes_LBQM = probs_LBQP.sum(-1, keepdim=True) + truth_BMP.sum(-1)[:, None]
    dice_LBQM = 1 - (2 * overlap_LBQM + 1) / (sizes_LBQM + 1)
    labels_LBQM = targets.labels_BM[:, None].expand_as(dice_LBQM)
    class_LBQM = -class_logits_LBQK.softmax(-1).gather(-1, labels_LBQM)
    cost = CLASS_WEIGHT * class_LBQM + FOCAL_WEIGHT * focal_LBQM + DICE_WEIGHT * dice_LBQM
    costs_LBQM = cost.cpu().numpy()
    pairs = []
    for layer, costs_BQM in enumerate(costs_LBQM):
        for image, count in enumerate(targets.counts):
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
