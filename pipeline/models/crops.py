"""Regions of an image cut out for CLIP (spec 2.4).

Dimension key: Q proposals, V valid proposals, H W image, S side of CLIP's square input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.resize import Size


@dataclass(frozen=True)
class CropSettings:
    """How a region becomes CLIP's input; the defaults are the paper's."""

    mask_threshold: float = 0.5
    fill: str = "mean"  # or "zero"
    expand_ratio: float = 1.0
    matting: bool = False


@dataclass(frozen=True)
class Regions:
    """Which proposals hold a pixel above the threshold, and the crops of those, in order."""

    valid_Q: Tensor  # bool
    boxes_V4: Tensor  # int64 XYXY, half-open, of the binary mask
    crops_V3SS: Tensor  # float32, normalised with CLIP's mean and std


def crop_regions(
    image_3HW: Tensor,
    mask_probs_QHW: Tensor,
    settings: CropSettings,
    *,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Regions:
    """Cut every valid proposal out of a uint8 image and squash it to `side` x `side`.

    Outside the mask is CLIP's mean colour (0 after normalisation) or black. Bicubic with
    a = -0.75, no antialias, edges clamped, aspect not kept: what the reference does.
    """
    device = image_3HW.device
    mean_311 = torch.tensor(mean, device=device)[:, None, None]
    std_311 = torch.tensor(std, device=device)[:, None, None]
    binary_QHW = mask_probs_QHW > settings.mask_threshold
    valid_Q = binary_QHW.flatten(1).any(dim=1)
    boxes_V4 = mask_boxes(binary_QHW[valid_Q])
    fill_311 = mean_311 * 255.0 if settings.fill == "mean" else torch.zeros_like(mean_311)
    pixels_3HW = image_3HW.float()
    size = (pixels_3HW.shape[1], pixels_3HW.shape[2])
    crops = []
    for index, box in zip(valid_Q.nonzero()[:, 0].tolist(), boxes_V4.tolist(), strict=True):
        x0, y0, x1, y1 = expand_box(box, settings.expand_ratio, size)
        masks = mask_probs_QHW if settings.matting else binary_QHW
        mask_HW = masks[index, y0:y1, x0:x1].float()
        crop_3HW = pixels_3HW[:, y0:y1, x0:x1] * mask_HW + fill_311 * (1.0 - mask_HW)
        crop_3HW = (crop_3HW - 255.0 * mean_311) / (255.0 * std_311)
        crops.append(
            interpolate(crop_3HW[None], size=(side, side), mode="bicubic", align_corners=False)[0]
        )
    stacked = torch.stack(crops) if crops else pixels_3HW.new_zeros((0, 3, side, side))
    return Regions(valid_Q, boxes_V4, stacked)


def mask_boxes(masks_VHW: Tensor) -> Tensor:
    """Return the tight half-open XYXY box (V, 4) of every boolean mask; none may be empty."""
    columns_VW = masks_VHW.any(dim=1)
    rows_VH = masks_VHW.any(dim=2)
    x0, x1 = _extent(columns_VW)
    y0, y1 = _extent(rows_VH)
    return torch.stack([x0, y0, x1, y1], dim=1)


def _extent(occupied_VN: Tensor) -> tuple[Tensor, Tensor]:
    flags = occupied_VN.to(torch.uint8)
    first = flags.argmax(dim=1)
    last = occupied_VN.shape[1] - flags.flip(1).argmax(dim=1)
    return first, last


def expand_box(box: list[int], ratio: float, size: Size) -> tuple[int, int, int, int]:
    """Grow a box about its centre, truncate each coordinate toward zero, clamp it to the image."""
    if ratio == 1.0:
        return box[0], box[1], box[2], box[3]
    height, width = size
    x0, y0, x1, y1 = box
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    half_width, half_height = (x1 - x0) * ratio / 2, (y1 - y0) * ratio / 2
    return (
        max(int(centre_x - half_width), 0),
        max(int(centre_y - half_height), 0),
        min(int(centre_x + half_width), width),
        min(int(centre_y + half_height), height),
    )
