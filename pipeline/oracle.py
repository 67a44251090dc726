"""The oracle classifier: the upper bound that proposals leave to any classifier (spec 1.1).

Dimension key: Q proposals, K class names, H W pixels.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics import truth_ignore

_MIN_PROB: Final = 0.5  # a pixel is in a mask above this


def oracle_scores(
    mask_probs_QHW: Tensor,
    truth_HW: NDArray[np.integer[Any]],
    num_classes: int,
    ignore: int | None = None,
) -> Tensor:
    """Return class scores (Q, K): the IoU of each mask with each class, summing to 1 per mask.

    A mask that meets no class scores 0 everywhere. Ignored pixels belong to no class, yet count in
    the union where a mask covers them. Raises ValueError when sizes differ or the truth holds an
    index that is neither a class nor `ignore` (if absent that of `truth_ignore`).
    """
    ignore = truth_ignore(num_classes) if ignore is None else ignore
    truth = torch.from_numpy(truth_HW.astype(np.int64)).to(mask_probs_QHW.device)
    if mask_probs_QHW.shape[1:] != truth.shape:
        masks, map_size = tuple(mask_probs_QHW.shape[1:]), tuple(truth.shape)
        raise ValueError(f"masks are {masks}, truth is {map_size}")
    present = [index for index in np.unique(truth_HW).tolist() if index != ignore]
    if wrong := [index for index in present if not 0 <= index < num_classes]:
        raise ValueError(f"truth holds indices {wrong}, there are {num_classes} classes")
    masks_QHW = mask_probs_QHW > _MIN_PROB
    area_Q = masks_QHW.sum(dim=(1, 2))
    iou_QK = torch.zeros((len(masks_QHW), num_classes), device=mask_probs_QHW.device)
    for index in present:  # a photograph holds few of the classes
        of_class_HW = truth == index
        hit_Q = masks_QHW[:, of_class_HW].sum(dim=1)
        iou_QK[:, index] = hit_Q / (area_Q + of_class_HW.sum() - hit_Q)
    return torch.nn.functional.normalize(iou_QK, p=1.0, dim=1)
