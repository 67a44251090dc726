"""One fixed colour and pattern of lines per class index, to differ for colour-blind eyes too.

Dimension key: N colours, V kinds of vision, 3 channels, h w pixels of a thumbnail.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Floats = NDArray[np.float64]

# What a dichromat sees of linear RGB (Machado, Oliveira, Fernandes 2009, severity 1).
_VISIONS_V33: Final = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],  # no long cones
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],  # no medium cones
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    ]
)
# Linear RGB -> cone response -> OKLab, in which distances are roughly what people see.
_TO_CONES_33: Final = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB_33: Final = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FIRST: Final = (0, 114, 178)  # a blue of medium lightness
_LIGHTNESS: Final = (0.42, 0.92)  # neither black nor white on a light or a dark page
PATTERNS: Final = ("plain", "rising", "level", "dots", "falling", "upright", "crossed")
_PERIOD: Final = 8  # pixels between the lines of a pattern
_CHROMA: Final = (0.06, 0.23)  # greys mean "no label", neon colours tire the eye


def class_colours(count: int) -> tuple[Colour, ...]:
    """Return `count` RGB colours by class index; the first ones do not depend on `count`.

    They repeat after some hundreds, when no further colour could be told apart.
    """
    colours = _all_colours()
    return tuple(colours[index % len(colours)] for index in range(count))


def class_pattern(class_index: int) -> str:
    """Return the name of the pattern of a class: neighbours in the vocabulary differ."""
    return PATTERNS[class_index % len(PATTERNS)]


def pattern_lines(pattern: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where the lines of a pattern are, (h, w); the page's legends draw the same in CSS."""
    rows_h1, columns_1w = np.ogrid[: size[0], : size[1]]
    rising = (rows_h1 + columns_1w) % _PERIOD < 2
    falling = (rows_h1 - columns_1w) % _PERIOD < 2
    level, upright = (axis % _PERIOD < 2 for axis in (rows_h1, columns_1w))
    lines: dict[str, NDArray[np.bool_]] = {
        "plain": np.zeros((1, 1), dtype=bool),
        "rising": rising,
        "falling": falling,
        "level": level,
        "upright": upright,
        "crossed": rising | falling,
        "dots": (rows_h1 % _PERIOD < 3) & (columns_1w % _PERIOD < 3),
    }
    return np.broadcast_to(lines[pattern], size)


def hexadecimal(colour: Colour) -> str:
    """Return a colour as CSS writes it, `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@lru_cache(maxsize=1)
def _all_colours() -> tuple[Colour, ...]:
    """Order a grid of colours so that each is as far as it can be from those before it.

    The distance of two colours is the smallest over the kinds of vision; most people's counts
    half, so that the first colours are not only the blues and yellows that all tell apart.
    """
    rgb_N3 = _grid()
    lab_VN3 = _oklab(rgb_N3)
    chroma_N = np.hypot(lab_VN3[0, :, 1], lab_VN3[0, :, 2])
    usable_N = (lab_VN3[0, :, 0] >= _LIGHTNESS[0]) & (lab_VN3[0, :, 0] <= _LIGHTNESS[1])
    usable_N &= (chroma_N >= _CHROMA[0]) & (chroma_N <= _CHROMA[1])
    usable_N[0] = True  # _FIRST
    rgb_N3, lab_VN3 = rgb_N3[usable_N], lab_VN3[:, usable_N]
    order = [0]
    gap_N = np.full(len(rgb_N3), np.inf)
    for _ in range(len(rgb_N3) - 1):
        step_VN = np.linalg.norm(lab_VN3 - lab_VN3[:, order[-1], None], axis=-1)
        gap_N = np.minimum(gap_N, np.minimum(0.5 * step_VN[0], step_VN.min(axis=0)))
        order.append(int(gap_N.argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in rgb_N3[order])


def _grid() -> NDArray[np.int64]:
    levels = np.linspace(0, 255, 11).round().astype(np.int64)
    grid_N3 = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.concatenate([np.array([_FIRST]), grid_N3])


def _oklab(rgb_N3: NDArray[np.int64]) -> Floats:
    """Return OKLab coordinates (V, N, 3) as every kind of vision sees the colours."""
    value_N3 = rgb_N3 / 255.0
    linear_N3 = np.where(value_N3 <= 0.04045, value_N3 / 12.92, ((value_N3 + 0.055) / 1.055) ** 2.4)
    seen_VN3 = np.clip(np.einsum("vij,nj->vni", _VISIONS_V33, linear_N3), 0, 1)
    return np.asarray(np.cbrt(seen_VN3 @ _TO_CONES_33.T) @ _TO_LAB_33.T)
