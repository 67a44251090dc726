"""The paper's augmentation (spec 3.1): resize, crop, colour jitter, mirror, pad to the crop size.

Dimension key: H W pixels of an image, C side of the square crop, 3 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.resize import resize_image, resized_size
from pipeline.training.labelled_images import VOID

PADDING_VALUE: Final = 128  # of raw pixels
BRIGHTNESS: Final = 32.0  # at most so much is added, of 255
CONTRAST: Final = (0.5, 1.5)
SATURATION: Final = (0.5, 1.5)
HUE_DEGREES: Final = 36.0  # the reference's 18, in OpenCV's half degrees

Pixels = NDArray[np.uint8]
Positions = NDArray[np.int32]


@dataclass(frozen=True)
class Augmentation:
    """One random view of an image: all randomness comes from the generator that is given.

    A view of other than the crop's size, which only an image smaller than the crop has, is padded
    at the right and bottom.
    """

    short_edges: tuple[int, ...]
    long_edge: int
    crop_size: int
    colour_jitter: bool = True
    flip: bool = True

    def __call__(
        self, rng: np.random.Generator, image: Image.Image, positions_HW: Positions
    ) -> tuple[Pixels, Positions]:
        """Return pixels (C, C, 3) and the seen position or VOID of each (C, C)."""
        short_edge = self.short_edges[int(rng.integers(len(self.short_edges)))]
        size = resized_size((image.height, image.width), short_edge, self.long_edge)
        top, left = (int(rng.integers(max(0, side - self.crop_size) + 1)) for side in size)
        window = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
        pixels_HW3 = resize_image(image, size)[window]
        labels = Image.fromarray(positions_HW).resize(size[::-1], Image.Resampling.NEAREST)
        positions_HW = np.asarray(labels)[window]
        if self.colour_jitter:
            pixels_HW3 = jitter(rng, pixels_HW3)
        if self.flip and rng.random() < 0.5:
            pixels_HW3, positions_HW = pixels_HW3[:, ::-1], positions_HW[:, ::-1]
        inside = slice(positions_HW.shape[0]), slice(positions_HW.shape[1])
        pixels_CC3 = np.full((self.crop_size, self.crop_size, 3), PADDING_VALUE, np.uint8)
        positions_CC = np.full((self.crop_size, self.crop_size), VOID, np.int32)
        pixels_CC3[inside], positions_CC[inside] = pixels_HW3, positions_HW
        return pixels_CC3, positions_CC


def jitter(rng: np.random.Generator, pixels_HW3: Pixels) -> Pixels:
    """Return the colours of SSD's training: four changes, each made one time in two.

    Brightness comes first; contrast comes before saturation and hue, or after both.
    """
    if rng.random() < 0.5:
        pixels_HW3 = _scaled(pixels_HW3, 1.0, float(rng.uniform(-BRIGHTNESS, BRIGHTNESS)))
    contrast = float(rng.uniform(*CONTRAST)) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    if contrast_first:
        pixels_HW3 = _scaled(pixels_HW3, contrast, 0.0)
    saturation = float(rng.uniform(*SATURATION)) if rng.random() < 0.5 else 1.0
    hue = float(rng.uniform(-HUE_DEGREES, HUE_DEGREES)) if rng.random() < 0.5 else 0.0
    pixels_HW3 = _recoloured(pixels_HW3, saturation, hue)
    return pixels_HW3 if contrast_first else _scaled(pixels_HW3, contrast, 0.0)


def _scaled(pixels: Pixels, factor: float, offset: float) -> Pixels:
    if factor == 1.0 and offset == 0.0:
        return pixels
    scaled: Pixels = np.clip(pixels * np.float32(factor) + np.float32(offset), 0, 255).astype(
        np.uint8
    )
    return scaled


def _recoloured(pixels_HW3: Pixels, saturation: float, hue_degrees: float) -> Pixels:
    if saturation == 1.0 and hue_degrees == 0.0:
        return pixels_HW3
    hsv_HW3 = np.array(Image.fromarray(np.ascontiguousarray(pixels_HW3)).convert("HSV"))
    hsv_HW3[..., 1] = _scaled(hsv_HW3[..., 1], saturation, 0.0)
    turned = hsv_HW3[..., 0].astype(np.int16) + round(hue_degrees / 360 * 256)
    hsv_HW3[..., 0] = (turned % 256).astype(np.uint8)
    return np.asarray(Image.fromarray(hsv_HW3, "HSV").convert("RGB"))
