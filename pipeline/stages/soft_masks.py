"""What travels on the stride-4 grid, unpacked from a row; apart from rows.py, which is light."""

from typing import Final

import torch
from torch import Tensor

from pipeline.masks import Precision, SoftMasks, unpack_grid
from pipeline.models.device import pick_device
from pipeline.resize import padded_size
from pipeline.stages.compact import is_compact, picture_logits
from pipeline.stages.rows import Row

_KEPT: Final = "soft_masks"  # no column: beside those of a row, between two stages of an actor
_CERTAIN: Final = 100.0  # a logit whose sigmoid is 1 in float32


def soft_masks(row: Row, precision: Precision, divisor: int) -> Tensor:
    """Return the soft masks (Q, H, W) of a row over its resized image, on the worker's device."""
    return masks_of(row, precision, divisor).whole()


def masks_of(row: Row, precision: Precision, divisor: int) -> SoftMasks:
    """Return the soft masks of a row, still to be made, on the worker's device.

    Without proposals, since its network compares pixels, the image as a whole is the one region.
    """
    if _KEPT in row:
        kept: SoftMasks = row[_KEPT]
        return kept
    size = (row["image_height"], row["image_width"])
    if row["pixel_embeds"] is not None:
        everywhere_111 = torch.full((1, 1, 1), _CERTAIN, device=pick_device())
        return SoftMasks(everywhere_111, size, size)
    if is_compact(row):
        logits_Qhw = torch.from_numpy(picture_logits(row)).to(pick_device())
    else:
        logits_Qhw = _unpack(row, "mask_logits", row["n_proposals"], precision)
    return SoftMasks(logits_Qhw, padded_size(size, divisor), size)


def kept_on_gpu(row: Row, precision: Precision, divisor: int) -> Row:
    """Return the row with its masks as well, if they are on a GPU: another stage asks for them.

    In the memory of the host they would be twice there, for a copy that costs next to nothing.
    """
    if pick_device() == "cpu":
        return row
    return {**row, _KEPT: masks_of(row, precision, divisor)}


def pixel_embeds(row: Row, precision: Precision, num_dims: int) -> Tensor:
    """Return the pixel embeddings (D, h, w) of a row, on the worker's device."""
    return _unpack(row, "pixel_embeds", num_dims, precision)


def _unpack(row: Row, column: str, channels: int, precision: Precision) -> Tensor:
    shape = (channels, row["mask_height"], row["mask_width"])
    return unpack_grid(row[column], shape, precision, pick_device())
