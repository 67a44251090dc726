"""How good a proposer and a CLIP are together on scenes, by the code that annotates.

Dimension key: Q proposals, K class names, D embedding, V valid proposals, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.fusion import fuse, label_map, query_probs, region_probs
from pipeline.masks import mask_probs
from pipeline.metrics import Confusion, harmonic_iou
from pipeline.models.clip import Clip
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.models.maskformer import MaskFormerConfig
from pipeline.models.maskformer_proposer import MaskFormerProposer
from pipeline.resize import Size, padded_size, resize_image, resized_size
from pipeline.synthetic import VOCABULARY, Scene, seen_flags


@dataclass(frozen=True)
class Choice:
    """What is tuned on validation scenes: the ensemble's exponent and the mask threshold."""

    weight: float
    mask_threshold: float


@dataclass(frozen=True)
class Quality:
    """Mean IoU in [0, 1] over seen and unseen classes, and their harmonic mean."""

    seen_miou: float
    unseen_miou: float
    hiou: float
    pixel_accuracy: float


@dataclass(frozen=True, eq=False)
class Proposed:
    """One scene after the proposer: the resized image, soft masks and query scores."""

    image_3HW: Tensor
    mask_probs_QHW: Tensor
    query_probs_QK: Tensor
    truth_HW: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Classified:
    """CLIP's scores of the proposals that are valid at one mask threshold."""

    valid_Q: Tensor
    region_probs_VK: Tensor


@torch.inference_mode()
def propose(
    proposer: MaskFormerProposer,
    config: MaskFormerConfig,
    text_KD: Tensor,
    scenes: Sequence[Scene],
) -> list[Proposed]:
    """Run the proposer on every scene, one at a time."""
    return [_propose(proposer, config, text_KD, scene) for scene in scenes]


def _propose(
    proposer: MaskFormerProposer, config: MaskFormerConfig, text_KD: Tensor, scene: Scene
) -> Proposed:
    height, width = scene.label_map_HW.shape
    size = resized_size((height, width), config.short_edge, config.long_edge)
    image_HW3 = resize_image(Image.fromarray(scene.image_HW3), size)
    proposals = proposer.propose([image_HW3])[0]
    if proposals.query_embeds_QD is None or proposals.void_logits_Q is None:
        raise TypeError("the MaskFormer proposer always has a query head")
    return Proposed(
        torch.from_numpy(image_HW3.copy()).permute(2, 0, 1),
        mask_probs(proposals.mask_logits_Qhw, padded_size(size, config.size_divisibility), size),
        query_probs(proposals.query_embeds_QD, text_KD, proposals.void_logits_Q),
        scene.label_map_HW,
    )


@torch.inference_mode()
def classify(
    clip: Clip, text_KD: Tensor, proposed: Sequence[Proposed], mask_threshold: float
) -> list[Classified]:
    """Classify the valid proposals of every scene by their masked crops."""
    settings = CropSettings(mask_threshold=mask_threshold)
    classified = []
    for scene in proposed:
        regions = crop_regions(
            scene.image_3HW,
            scene.mask_probs_QHW,
            settings,
            side=clip.side,
            mean=clip.mean,
            std=clip.std,
        )
        embeds_VD = clip.encode_crops(regions.crops_V3SS, 256)
        classified.append(Classified(regions.valid_Q, region_probs(embeds_VD, text_KD)))
    return classified


@torch.inference_mode()
def measure(
    proposed: Sequence[Proposed], classified: Sequence[Classified] | None, weight: float
) -> Quality:
    """Return the quality of fused labels: without CLIP if `classified` is None, CLIP only at 0."""
    seen_K = torch.tensor(seen_flags())
    total = Confusion.zero(len(VOCABULARY))
    for index, scene in enumerate(proposed):
        regions = classified[index] if classified is not None else None
        scores_QK = fuse(
            scene.query_probs_QK,
            regions.region_probs_VK if regions else None,
            regions.valid_Q if regions else torch.ones(len(scene.query_probs_QK), dtype=torch.bool),
            seen_K,
            weight,
        )
        size: Size = (scene.truth_HW.shape[0], scene.truth_HW.shape[1])
        labels = label_map(scores_QK, scene.mask_probs_QHW, size)
        total = total + Confusion.of(labels.classes_HW.numpy(), scene.truth_HW, len(VOCABULARY))
    seen = total.miou(seen_flags())
    unseen = total.miou([not flag for flag in seen_flags()])
    return Quality(
        *(
            round(value, 4)
            for value in (seen, unseen, harmonic_iou(seen, unseen), total.pixel_accuracy())
        )
    )


def choose(
    clip: Clip,
    text_KD: Tensor,
    proposed: Sequence[Proposed],
    weights: Sequence[float],
    mask_thresholds: Sequence[float],
) -> tuple[Choice, list[dict[str, float]]]:
    """Return the weight and threshold of the best hIoU, and the whole table of the search."""
    table: list[dict[str, float]] = []
    for threshold in mask_thresholds:
        classified = classify(clip, text_KD, proposed, threshold)
        for weight in weights:
            quality = measure(proposed, classified, weight)
            table.append({"weight": weight, "mask_threshold": threshold, **asdict(quality)})
    best = max(table, key=lambda row: row["hiou"])
    return Choice(best["weight"], best["mask_threshold"]), table
