"""Bilinear resizing of some rows of a map at a time (half-pixel centres, no antialias).

Dimension key: Q maps, H W pixels, T target rows.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def bilinear_taps(source: int, target: int, device: torch.device) -> list[Tensor]:
    """Return lower index, upper index and upper weight per target position (half-pixel centres)."""
    scale = source / target
    centre = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
    centre = centre.clamp_min(0.0)
    lower = centre.floor().long().clamp_max(source - 1)
    upper = (lower + 1).clamp_max(source - 1)
    return [lower, upper, centre - lower]


def resize_rows(values_QHW: Tensor, rows: list[Tensor], width: int) -> Tensor:
    """Return some rows of the bilinearly resized maps, at the full target width."""
    top, bottom, down = rows
    # index_select copies whole rows, where indexing goes number by number.
    above_QTW, below_QTW = (values_QHW.index_select(1, index) for index in (top, bottom))
    return resize_width(torch.lerp(above_QTW, below_QTW, down[None, :, None]), width)


def resize_width(values: Tensor, width: int) -> Tensor:
    """Resize the last axis of a tensor of any shape."""
    if values.shape[-1] == width:
        return values
    if not values.numel():  # interpolate refuses an empty batch
        return values.new_zeros((*values.shape[:-1], width))
    flat = values.reshape(-1, values.shape[-1])
    if flat.is_cuda:
        # The same numbers: torch's linear kernel has one thread a column, which goes through all
        # rows one after the other; the bilinear one has a thread a pixel.
        size = (len(flat), width)
        resized = interpolate(flat[None, None], size=size, mode="bilinear", align_corners=False)
    else:
        resized = interpolate(flat[None], size=width, mode="linear", align_corners=False)
    return resized.reshape(*values.shape[:-1], width)
