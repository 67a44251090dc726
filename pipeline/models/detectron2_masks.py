"""From what a detectron2 model returns for one image to class-agnostic masks.

The names of outputs are detectron2's: `panoptic_seg`, `instances`, `sem_seg`. The model's own
classes decide nothing but which pixels belong together. Dimension key: Q masks, L the model's own
classes, H W image, h w mask grid.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.models.partition import grid_logits
from pipeline.resize import Size
from schemas.errors import ModelError

_MAX_PROPOSALS: Final = 100
# Non-maximum suppression of a detector is per class: the same object comes once for each class
# that it may be.
_MAX_IOU: Final = 0.9


def proposal_logits(output: Mapping[str, Any], size: Size) -> Tensor:
    """Return up to 100 masks of an image of `size` as logits (Q, h, w) at stride 4, on the CPU."""
    logits_Qhw = grid_logits(output_masks(output, size).cpu().numpy())
    return without_repeats(logits_Qhw, _MAX_IOU)[:_MAX_PROPOSALS]


def output_masks(output: Mapping[str, Any], size: Size) -> Tensor:
    """Return every mask of an output, (Q, H, W) boolean.

    First come panoptic segments, then instances, best score first; what neither covers is divided
    by the semantic class. Raises ModelError where an output holds no masks or those of another
    size.
    """
    stacks = []
    if "panoptic_seg" in output:
        stacks.append(_panoptic_masks(*output["panoptic_seg"]))
    if "instances" in output and output["instances"].has("pred_masks"):
        stacks.append(_instance_masks(output["instances"]))
    if "sem_seg" in output:
        stacks.append(_class_masks(output["sem_seg"], stacks))
    if not stacks:
        raise ModelError(
            f"the detectron2 model returned {', '.join(output) or 'nothing'} without masks; a "
            "proposer needs instances with pred_masks, sem_seg or panoptic_seg"
        )
    for masks_QHW in stacks:
        if tuple(masks_QHW.shape[1:]) != size:
            raise ModelError(
                f"the detectron2 model returned masks of {tuple(masks_QHW.shape[1:])} for an image "
                f"of {size} (height, width)"
            )
    return torch.cat(stacks)


def _panoptic_masks(ids_HW: Tensor, segments: list[dict[str, Any]] | None) -> Tensor:
    """Return the mask of each segment; without a list of them, of every number from 0 on."""
    if segments is None:
        ids = torch.unique(ids_HW[ids_HW >= 0])
    else:
        ids = torch.tensor([segment["id"] for segment in segments], device=ids_HW.device)
    masks_QHW: Tensor = ids_HW == ids[:, None, None]
    return masks_QHW


def _instance_masks(instances: Any) -> Tensor:
    masks = instances.pred_masks
    masks_QHW: Tensor = getattr(masks, "tensor", masks)  # a BitMasks wraps its tensor
    masks_QHW = masks_QHW > 0.5  # of booleans those that are true
    if instances.has("scores"):
        masks_QHW = masks_QHW[instances.scores.argsort(descending=True, stable=True)]
    return masks_QHW


def _class_masks(class_scores_LHW: Tensor, earlier: list[Tensor]) -> Tensor:
    """Return the region of each class that occurs among the pixels that no earlier mask covers."""
    classes_HW = class_scores_LHW.argmax(dim=0)
    for masks_QHW in earlier:
        classes_HW[masks_QHW.any(dim=0)] = -1
    return _panoptic_masks(classes_HW, None)


def without_repeats(logits_Qhw: Tensor, max_iou: float) -> Tensor:
    """Return the masks that fill a cell and whose IoU with no earlier one is above `max_iou`."""
    inside_QN = (logits_Qhw > 0).flatten(1).float()
    shared_QQ = inside_QN @ inside_QN.T
    area_Q = inside_QN.sum(dim=1)
    joined_QQ = area_Q[:, None] + area_Q[None, :] - shared_QQ
    repeats_QQ = shared_QQ > max_iou * joined_QQ
    kept: list[int] = []
    for index in range(len(logits_Qhw)):
        if area_Q[index] > 0 and not repeats_QQ[index, kept].any():
            kept.append(index)
    return logits_Qhw[kept]
