"""Label maps as PNG files, grey or with the palette of PASCAL VOC.

Dimension key: H W pixels, N colours.
"""

from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode_labels(labels_HW: NDArray[np.int32], ignore: int, palette: bool = False) -> bytes:
    """Return a PNG of class indices; of 16 bits and without a palette from 256 classes."""
    image = Image.fromarray(labels_HW.astype(np.uint8 if ignore < 256 else np.uint16))
    if palette and ignore < 256:
        image.putpalette(voc_palette())
    file = BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()


@cache
def voc_palette() -> bytes:
    """Return the 256 RGB colours of PASCAL VOC's development kit (VOClabelcolormap)."""
    index_N = np.arange(256)
    colours_N3 = np.zeros((256, 3), np.int64)
    for level in range(8):
        for channel in range(3):
            colours_N3[:, channel] |= (index_N >> (3 * level + channel) & 1) << (7 - level)
    return colours_N3.astype(np.uint8).tobytes()
