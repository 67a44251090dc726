"""Small pictures for a page, as data URIs: photos and label maps.

Dimension key: H height, W width of an image; h w of its thumbnail; K classes of it.
"""

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.palette import Colour, class_colours, class_pattern, pattern_lines
from pipeline.resize import Size, resize_nearest
from pipeline.segments import IGNORE

MAX_EDGE: Final = 256
_PHOTO_QUALITY: Final = 78
_BOUNDARY_SHADE: Final = 0.4
_LINE_SHADE: Final = 0.68

LabelMap = NDArray[np.int32]
Rgba = tuple[int, int, int, int]


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
    """Draw a label map: colour and pattern by class, dark boundaries, clear where no label is."""
    small_hw = resize_nearest(label_map_HW, _thumbnail_size(label_map_HW.shape))
    present_K, ranks_hw = np.unique(small_hw, return_inverse=True)
    ranks_hw = ranks_hw.reshape(small_hw.shape)
    colours = class_colours(int(present_K.max(initial=0)) + 1)
    # Clear, then of every class its colour, that of its lines, that of its boundary.
    palette = [(0, 0, 0, 0)]
    indices_hw = np.zeros(small_hw.shape, dtype=np.int64)
    is_boundary_hw = _boundary(small_hw)
    for rank, class_index in enumerate(present_K.tolist()):
        if class_index == IGNORE:
            continue
        lines_hw = pattern_lines(class_pattern(class_index), small_hw.shape)
        shades_hw = len(palette) + np.where(is_boundary_hw, 2, lines_hw)
        indices_hw = np.where(ranks_hw == rank, shades_hw, indices_hw)
        palette += [_shaded(colours[class_index], by) for by in (1.0, _LINE_SHADE, _BOUNDARY_SHADE)]
    height, width = small_hw.shape
    return Thumbnail(_drawn(indices_hw, palette), height, width, alt)


def _drawn(indices_hw: NDArray[np.int64], palette: list[Rgba]) -> str:
    """Return a PNG, with a palette where a byte can name every colour: a fifth of the size."""
    if len(palette) > 256:
        return _data_uri(Image.fromarray(np.array(palette, dtype=np.uint8)[indices_hw]), "png")
    image = Image.fromarray(indices_hw.astype(np.uint8), "P")
    image.putpalette([value for colour in palette for value in colour[:3]])
    return _data_uri(image, "png", optimize=True, transparency=0)


def _shaded(colour: Colour, by: float) -> Rgba:
    red, green, blue = (round(value * by) for value in colour)
    return red, green, blue, 255


def _thumbnail_size(size: tuple[int, ...]) -> Size:
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
