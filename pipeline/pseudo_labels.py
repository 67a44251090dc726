"""Pseudo labels for self-training, from a score map and the known truth of seen classes (spec 4).

Dimension key: K class names, H W pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.metrics import IGNORE_TRUTH


@dataclass(frozen=True)
class PseudoLabelSettings:
    """How pixels without a known label get one; the defaults are the paper's.

    `prior`: "unseen" lets only unseen classes compete, by the softmax of their summed scores over
    all classes; "none" takes the best class of all, by its summed score. A pixel whose best class
    stays below `min_score` (a probability, or with "none" a summed score) is rejected. It becomes
    `rejected_index`; the reference writes K, which is out of range for every reader (B-10).
    """

    prior: Literal["unseen", "none"] = "unseen"
    min_score: float = 0.0
    rejected_index: int = IGNORE_TRUTH


def pseudo_labels(
    scores_KHW: Tensor, truth_HW: Tensor, seen_K: Tensor, settings: PseudoLabelSettings
) -> Tensor:
    """Return the class index (H, W) int64 of every pixel.

    The truth is pasted wherever it is a seen class, over rejected pixels too. Every other pixel,
    unseen or void, keeps its pseudo label, as in the reference. `scores_KHW` are the summed scores
    S of `pipeline.fusion.score_tiles`, whole or some of its rows. Raises ValueError for shapes that
    do not fit, and for a `rejected_index` that is a class.
    """
    num_classes = len(scores_KHW)
    if scores_KHW.shape[1:] != truth_HW.shape or seen_K.shape != (num_classes,):
        raise ValueError(
            f"scores are {tuple(scores_KHW.shape)}, so truth must be {tuple(scores_KHW.shape[1:])} "
            f"and seen flags ({num_classes},), but got {tuple(truth_HW.shape)} and "
            f"{tuple(seen_K.shape)}"
        )
    if 0 <= settings.rejected_index < num_classes:
        raise ValueError(
            f"rejected_index {settings.rejected_index} is one of the {num_classes} classes"
        )
    if settings.prior == "unseen":
        competing_KHW = scores_KHW.softmax(dim=0).masked_fill(seen_K[:, None, None], 0.0)
    else:
        competing_KHW = scores_KHW
    best_HW, labels_HW = competing_KHW.max(dim=0)
    labels_HW = labels_HW.masked_fill(best_HW < settings.min_score, settings.rejected_index)
    return torch.where(known_pixels(truth_HW, seen_K), truth_HW.long(), labels_HW)


def known_pixels(truth_HW: Tensor, seen_K: Tensor) -> Tensor:
    """Return where the truth is a seen class (H, W): these pixels need no pseudo label."""
    truth_HW = truth_HW.long()
    is_class_HW = (truth_HW >= 0) & (truth_HW < len(seen_K))
    return is_class_HW & seen_K[truth_HW.clamp(0, len(seen_K) - 1)]
