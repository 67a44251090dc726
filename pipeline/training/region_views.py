"""Regions of known masks as CLIP's input, for learning a prompt (spec 3.2).

Dimension key: H W pixels of the input, V views of a region, 3 RGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.models.device import per_channel
from pipeline.resize import Size

REFERENCE_HEIGHT: Final = 244 / 224  # of the width; a slip of the reference's config (B-5)
SCALES: Final = (0.08, 1.0)  # of the area of a random part
ASPECTS: Final = (3 / 4, 4 / 3)  # width to height of one
_DRAWS: Final = 10  # of a part that fits, and of one that shows the mask

Box = tuple[int, int, int, int]  # half-open XYXY


@dataclass(frozen=True)
class Region:
    """The box of a mask in an image, cut out."""

    image: Image.Image
    mask: Image.Image  # 0 or 255

    @classmethod
    def of(cls, image: Image.Image, mask_HW: NDArray[np.bool_]) -> Region:
        """Cut out the tight box of a mask, which must not be empty."""
        ys, xs = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
        return cls(image.crop(box), Image.fromarray(mask_HW).convert("L").crop(box))

    def view(self, box: Box, size: Size) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return pixels (H, W, 3) and mask (H, W) of a box, squashed to (height, width)."""
        width_height = size[::-1]
        pixels = self.image.crop(box).resize(width_height, Image.Resampling.BILINEAR)
        mask = self.mask.crop(box).resize(width_height, Image.Resampling.NEAREST)
        return np.asarray(pixels), np.asarray(mask) > 0

    def random_view(
        self, rng: np.random.Generator, size: Size
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return a random part, mirrored one time in two, that shows something of the mask.

        The reference puts another sample in the place of one whose mask left the view; here
        another part of the same region is drawn, and after ten the whole is taken.
        """
        for _ in range(_DRAWS):
            pixels_HW3, mask_HW = self.view(random_part(rng, self.image.size[::-1]), size)
            if mask_HW.any():
                break
        else:
            pixels_HW3, mask_HW = self.view((0, 0, *self.image.size), size)
        if rng.random() < 0.5:
            return pixels_HW3[:, ::-1], mask_HW[:, ::-1]
        return pixels_HW3, mask_HW


def random_part(rng: np.random.Generator, size: Size) -> Box:
    """Return the box of a random part of (height, width): of any area and shape in the limits.

    Where ten draws do not fit, the largest centred part of a shape in the limits.
    """
    height, width = size
    for _ in range(_DRAWS):
        area = height * width * rng.uniform(*SCALES)
        aspect = math.exp(rng.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = int(rng.integers(width - part_width + 1))
            top = int(rng.integers(height - part_height + 1))
            return left, top, left + part_width, top + part_height
    aspect = min(max(width / height, ASPECTS[0]), ASPECTS[1])
    part_width = max(1, min(width, round(height * aspect)))
    part_height = max(1, min(height, round(width / aspect)))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height


@dataclass(frozen=True)
class RegionInput:
    """What CLIP is given: its size, its statistics, and what is shown outside the mask."""

    size: Size
    fill: str  # reference, mean or zero
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels_VHW3: Tensor, masks_VHW: Tensor) -> Tensor:
        """Return CLIP's input (V, 3, H, W) from uint8 pixels and masks."""
        device = pixels_VHW3.device
        mean_311, std_311 = (per_channel(values, device) for values in (self.mean, self.std))
        input_V3HW = (pixels_VHW3.permute(0, 3, 1, 2).float() / 255 - mean_311) / std_311
        fill_311 = {
            "reference": mean_311,  # the colour itself, where it should have been normalised (B-4)
            "mean": torch.zeros_like(mean_311),
            "zero": -mean_311 / std_311,
        }[self.fill]
        return torch.where(masks_VHW[:, None], input_V3HW, fill_311)
