"""Polygons that people drew, as masks.

Dimension key: N vertices, H W pixels.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.resize import Size

_FEWEST: Final = 3  # vertices


def polygon_mask(points: Sequence[Sequence[float]], size: Size) -> NDArray[np.bool_]:
    """Return the pixels (H, W) inside a polygon, filled as COCO fills it (even-odd).

    Vertices are x, y in pixels, whole numbers at the corners of pixels; the last is joined to the
    first. What lies outside of the image is cut off. Raises ValueError for fewer than three
    vertices, for what is no pair of numbers, and for vertices farther outside than the image is
    large.
    """
    if len(points) < _FEWEST:
        raise ValueError(f"a polygon of {len(points)} vertices has no inside; it needs {_FEWEST}")
    height, width = size
    points_N2 = np.array(points, np.float64)  # of rows of two lengths NumPy makes no array
    if points_N2.shape[1:] != (2,) or not np.isfinite(points_N2).all():
        raise ValueError("the vertices of its polygon must be pairs of numbers, x and y")
    extent_2 = np.array([width, height])
    is_far_N = ((points_N2 < -extent_2) | (points_N2 > 2 * extent_2)).any(axis=1)
    if is_far_N.any():
        x, y = points_N2[is_far_N][0].tolist()
        raise ValueError(f"its vertex ({x:g}, {y:g}) is far from an image of {height} x {width}")
    (runs,) = coco_mask.frPyObjects([points_N2.ravel().tolist()], height, width)
    return np.asarray(coco_mask.decode(runs), dtype=bool)
