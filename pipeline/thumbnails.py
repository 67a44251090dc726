"""Small pictures for a page, as data URIs: photos and label maps.

Dimension key: H height, W width of an image; h w of its thumbnail; 4 RGBA.
"""

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.palette import class_colours
from pipeline.resize import Size
from pipeline.segments import IGNORE

MAX_EDGE: Final = 256
_PHOTO_QUALITY: Final = 82
_BOUNDARY_SHADE: Final = 0.55

LabelMap = NDArray[np.int32]


@dataclass(frozen=True)
class Thumbnail:
    """An image inside the page; `source` is a data URI."""

    source: str
    height: int
    width: int
    alt: str


def photo_thumbnail(photo: Image.Image, alt: str) -> Thumbnail:
    """Shrink a photo."""
    height, width = _thumbnail_size((photo.height, photo.width))
    small = photo.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    source = _data_uri(small, "webp", quality=_PHOTO_QUALITY)
    return Thumbnail(source, height, width, alt)


def map_thumbnail(label_map_HW: LabelMap, alt: str) -> Thumbnail:
    """Draw a label map: a colour per class, darker along boundaries, clear where no label is."""
    height, width = _thumbnail_size((label_map_HW.shape[0], label_map_HW.shape[1]))
    rows = ((np.arange(height) + 0.5) * label_map_HW.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * label_map_HW.shape[1] / width).astype(int)
    small_hw = label_map_HW[np.ix_(rows, columns)]
    palette = np.array(class_colours(int(max(small_hw.max(), 0)) + 1), dtype=np.uint8)
    image_hw4 = np.zeros((height, width, 4), dtype=np.uint8)
    image_hw4[..., :3] = palette[np.maximum(small_hw, 0)]
    image_hw4[..., 3] = 255
    boundary_hw = _boundary(small_hw)
    image_hw4[boundary_hw, :3] = image_hw4[boundary_hw, :3] * _BOUNDARY_SHADE
    image_hw4[small_hw == IGNORE] = 0
    return Thumbnail(
        _data_uri(Image.fromarray(image_hw4), "png", optimize=True), height, width, alt
    )


def _thumbnail_size(size: Size) -> Size:
    scale = min(1.0, MAX_EDGE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _boundary(label_map_hw: LabelMap) -> NDArray[np.bool_]:
    """Return where the pixel to the right or below has another label."""
    boundary_hw = np.zeros(label_map_hw.shape, dtype=bool)
    boundary_hw[:, :-1] |= label_map_hw[:, :-1] != label_map_hw[:, 1:]
    boundary_hw[:-1] |= label_map_hw[:-1] != label_map_hw[1:]
    return boundary_hw


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
