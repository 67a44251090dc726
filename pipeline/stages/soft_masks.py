"""The soft masks of a row, from the mask logits that travel; apart from rows.py, which is light."""

import numpy as np
from torch import Tensor

from pipeline.masks import Precision, mask_probs, unpack_logits
from pipeline.models.device import pick_device
from pipeline.resize import padded_size
from pipeline.stages.rows import Row


def soft_masks(row: Row, precision: Precision, divisor: int) -> Tensor:
    """Return the soft masks (Q, H, W) of a row over its resized image, on the worker's device."""
    shape = (row["n_proposals"], row["mask_height"], row["mask_width"])
    packed = np.frombuffer(row["mask_logits"], dtype=precision).reshape(shape)
    size = (row["image_height"], row["image_width"])
    logits = unpack_logits(packed.copy(), pick_device())
    return mask_probs(logits, padded_size(size, divisor), size)
