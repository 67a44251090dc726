"""Image sizes of the method: shortest-edge resize and padding (spec 2.1, 2.2). Sizes are (H, W)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]


def resized_size(size: Size, short_edge: int, long_edge: int) -> Size:
    """Return the size with the shorter side at `short_edge`, the longer at most at `long_edge`.

    Rounds half up, as detectron2 does; a side never falls below one pixel, where detectron2 fails.
    """
    height, width = size
    scale = short_edge / min(height, width)
    new_height, new_width = scale * height, scale * width
    longest = max(new_height, new_width)
    if longest > long_edge:
        shrink = long_edge / longest
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def padded_size(size: Size, divisor: int) -> Size:
    """Return `size` with each side rounded up to a multiple of `divisor`."""
    height, width = size
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def resize_image(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """Resize to `size` by Pillow's (antialiased) bilinear filter on uint8; returns (H, W, 3)."""
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def resize_nearest(maps: NDArray[Any], size: Size) -> NDArray[Any]:
    """Resize the last two axes (H, W): each pixel takes the value at its centre."""
    rows, columns = (
        ((np.arange(target) + 0.5) * (source / target)).astype(np.int64).clip(0, source - 1)
        for source, target in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[..., rows[:, None], columns]
