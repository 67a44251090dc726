"""What travels on the stride-4 grid, unpacked from a row; apart from rows.py, which is light."""

import numpy as np
import torch
from torch import Tensor

from pipeline.masks import Precision, mask_probs, unpack_logits
from pipeline.models.device import pick_device
from pipeline.resize import padded_size
from pipeline.stages.rows import Row


def soft_masks(row: Row, precision: Precision, divisor: int) -> Tensor:
    """Return the soft masks (Q, H, W) of a row over its resized image, on the worker's device.

    Without proposals, since its network compares pixels, the image as a whole is the one region.
    """
    size = (row["image_height"], row["image_width"])
    if row["pixel_embeds"] is not None:
        return torch.ones((1, *size), device=pick_device())
    logits_Qhw = _unpack(row, "mask_logits", row["n_proposals"], precision)
    return mask_probs(logits_Qhw, padded_size(size, divisor), size)


def pixel_embeds(row: Row, precision: Precision, num_dims: int) -> Tensor:
    """Return the pixel embeddings (D, h, w) of a row, on the worker's device."""
    return _unpack(row, "pixel_embeds", num_dims, precision)


def _unpack(row: Row, column: str, channels: int, precision: Precision) -> Tensor:
    shape = (channels, row["mask_height"], row["mask_width"])
    packed = np.frombuffer(row[column], dtype=precision).reshape(shape)
    return unpack_logits(packed.copy(), pick_device())
