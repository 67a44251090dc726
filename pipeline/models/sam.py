"""SAM 2 and SAM 3 as proposers: masks of everything, prompted by a grid of points.

For SAM 3 that is its tracker, the part that takes points; its detector takes words. Images are
stretched to the model's square, as in its own processor, so the mask grid covers exactly the image
and needs no padding. Settings are those of SAM 2's automatic mask generator, measured on the
model's own mask grid. Dimension key: P points, M masks, H W pixels, h w mask grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms  # type: ignore[import-untyped]  # ships no types
from transformers import Sam2Model, Sam3TrackerModel

from pipeline.models import Proposals, Proposer, ProposerCard, ProposerEntry
from pipeline.models.pretrained import (
    Checkpoint,
    find_checkpoint,
    identity_of,
    licence_of,
    load_config,
    load_image_processor,
    load_model,
    preprocess,
)
from schemas.errors import ModelError


@dataclass(frozen=True)
class MaskGeneration:
    """Settings of automatic mask generation; the defaults are SAM 2's."""

    points_per_side: int = 32
    points_per_batch: int = 64
    min_predicted_iou: float = 0.8  # the model's own opinion of a mask, [0, 1]
    min_stability: float = 0.95  # IoU of the mask at logits above +offset and above -offset
    stability_offset: float = 1.0
    max_box_iou: float = 0.7  # of two masks that are both kept
    max_proposals: int = 100


_DEFAULTS: Final = MaskGeneration()


class Sam:
    """Automatic masks of a SAM 2 model or a SAM 3 tracker."""

    def __init__(self, model: Any, processor: Any, settings: MaskGeneration = _DEFAULTS) -> None:
        self._model = model
        self._processor = processor
        self._settings = settings

    @torch.inference_mode()
    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return up to 100 proposals per RGB image (H, W, 3), best predicted IoU first."""
        if not images:
            return []
        pixels_B3HW = preprocess(self._processor, images)["pixel_values"].to(self._model.device)
        features = self._model.get_image_embeddings(pixels_B3HW)
        side = pixels_B3HW.shape[-1]
        return [
            Proposals(self._masks([level[index : index + 1] for level in features], side))
            for index in range(len(images))
        ]

    def _masks(self, features: list[Tensor], side: int) -> Tensor:
        """Return the mask logits (M, h, w) of one image's feature maps."""
        settings = self._settings
        points_P2 = point_grid(side, settings.points_per_side).to(self._model.device)
        kept, scores = [], []
        for some_P2 in torch.split(points_P2, settings.points_per_batch):
            output = self._model(
                input_points=some_P2[None, :, None],  # one point for each mask prompt
                image_embeddings=list(features),
                multimask_output=True,
            )
            logits_Mhw, iou_M = output.pred_masks[0].flatten(0, 1), output.iou_scores[0].flatten()
            good_M = (iou_M > settings.min_predicted_iou) & (
                stability(logits_Mhw, settings.stability_offset) > settings.min_stability
            )
            kept.append(logits_Mhw[good_M])
            scores.append(iou_M[good_M])
        return without_repeats(torch.cat(kept), torch.cat(scores), settings)


def point_grid(side: int, points_per_side: int) -> Tensor:
    """Return points (P, 2) as x, y in pixels, evenly over the whole square.

    Made here because transformers' `generate_crop_boxes` keeps the image's proportions, while SAM 2
    and 3 stretch the image: in a wide photo no point would fall on the lower part.
    """
    centres = (torch.arange(points_per_side, dtype=torch.float32) + 0.5) * (side / points_per_side)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)


def stability(logits_Mhw: Tensor, offset: float) -> Tensor:
    """Return how little each mask changes with its threshold: area above +offset / above -offset.

    It is 0 for a mask without any cell.
    """
    inner_M = (logits_Mhw > offset).sum(dim=(1, 2))
    outer_M = (logits_Mhw > -offset).sum(dim=(1, 2))
    return inner_M / outer_M.clamp_min(1)


def without_repeats(logits_Mhw: Tensor, scores_M: Tensor, settings: MaskGeneration) -> Tensor:
    """Return the best-scored masks of which no two boxes overlap by more than `max_box_iou`."""
    filled_M = (logits_Mhw > 0).flatten(1).any(dim=1)  # an empty mask has no box
    logits_Mhw, scores_M = logits_Mhw[filled_M], scores_M[filled_M]
    boxes_M4 = masks_to_boxes(logits_Mhw > 0)
    boxes_M4[:, 2:] += 1  # half-open, so that a box of one cell has an area
    best_M = nms(boxes_M4, scores_M, settings.max_box_iou)[: settings.max_proposals]
    return logits_Mhw[best_M]


@dataclass(frozen=True)
class _Family:
    """What differs between SAM 2 and SAM 3."""

    name: str
    model_types: tuple[str, ...]
    model: Any

    def describe(self, weights: str | None) -> ProposerCard:
        checkpoint = find_checkpoint(weights, self.name)
        config = load_config(checkpoint, self.name, self.model_types)
        side = _side(checkpoint, config, load_image_processor(checkpoint))
        return ProposerCard(
            short_edge=side,
            long_edge=side,
            divisor=1,
            embedding_dim=None,
            weights_sha256=identity_of(checkpoint),
            licence=licence_of(checkpoint),
        )

    def load(self, weights: str | None, device: str) -> Proposer:
        checkpoint = find_checkpoint(weights, self.name)
        config = load_config(checkpoint, self.name, self.model_types)
        processor = load_image_processor(checkpoint)
        _side(checkpoint, config, processor)
        return Sam(load_model(checkpoint, self.model, device), processor)

    @property
    def entry(self) -> ProposerEntry:
        summary = (
            f"masks of everything by {self.name.upper()}, through transformers (needs weights)"
        )
        return ProposerEntry(summary, self.describe, self.load, lower=lambda proposer, dtype: None)


def _side(checkpoint: Checkpoint, config: Any, processor: Any) -> int:
    """Return the side of the square that the model sees; its processor must make just that."""
    config = getattr(config, "tracker_config", config)
    side = config.prompt_encoder_config.image_size
    made = (processor.size.height, processor.size.width)
    if made != (side, side):
        raise ModelError(
            f"{checkpoint.name}: the model sees {side} x {side} pixels, "
            f"its image processor makes {made[0]} x {made[1]}"
        )
    return int(side)


SAM2: Final = _Family("sam2", ("sam2", "sam2_video"), Sam2Model).entry
SAM3: Final = _Family("sam3", ("sam3_tracker", "sam3_video"), Sam3TrackerModel).entry
