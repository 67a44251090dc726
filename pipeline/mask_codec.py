"""Mask logits as one compressed picture: the compact form of kept masks.

Soft masks are smooth, which is what picture codecs are made for. Logits are squeezed to 8 bits by a
wide sigmoid, so that levels are dense where a mask decides (around 0) and sparse where it is
certain, and the masks of an image are stacked to one grey picture. JPEG is tried first, since it is
read ten times as fast as AVIF, which takes a third of the bytes off.

Dimension key: Q proposals, h w grid of mask logits.
"""

from collections.abc import Iterator
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Logits are divided by this before the sigmoid.
_WIDTH: Final = 2.5
_LEVELS: Final = 254
_BLOCK: Final = 8  # JPEG codes blocks of this side: none may hold two masks
_MOST_ROWS: Final = 16_000  # codecs have limits of 65,535 pixels a side; further masks go beside

# Tried in this order until the picture is small enough; the last one counts whatever its size.
_ENCODINGS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("jpeg", {"quality": 85, "optimize": True}),
    ("jpeg", {"quality": 75, "optimize": True}),
    *(
        ("avif", {"quality": quality, "speed": 8, "subsampling": "4:0:0"})
        for quality in (75, 60, 45, 30)
    ),
)


def encode_logits(logits_Qhw: NDArray[np.floating[Any]], most_bytes: int) -> bytes:
    """Return a picture of the masks, of at most `most_bytes` unless the worst quality is larger."""
    if not len(logits_Qhw):
        return b""
    picture = Image.fromarray(_stacked(_levels(logits_Qhw)))
    for data in _encodings(picture):
        if len(data) <= most_bytes:
            break
    return data


def decode_logits(data: bytes, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the logits (Q, h, w) of what `encode_logits` returned.

    Raises ValueError for a picture that does not hold as much.
    """
    num_masks, height, width = shape
    if not num_masks:
        return np.zeros(shape, np.float32)
    with Image.open(BytesIO(data)) as picture:
        levels = np.asarray(picture if picture.mode == "L" else picture.convert("L"))
    block_height, block_width, per_column = _layout(num_masks, height, width)
    columns = -(-num_masks // per_column)
    expected = (per_column * block_height, columns * block_width)
    if levels.shape != expected:
        raise ValueError(f"a picture of {levels.shape} pixels does not hold masks of {shape}")
    stacks = levels.reshape(per_column, block_height, columns, block_width).transpose(2, 0, 1, 3)
    levels_Qhw = stacks.reshape(-1, block_height, block_width)[:num_masks, :height, :width]
    logits_Qhw: NDArray[np.float32] = _LOGIT_OF_LEVEL.take(levels_Qhw)
    return logits_Qhw


def _levels(logits_Qhw: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    squeezed = np.clip(logits_Qhw.astype(np.float32) / _WIDTH, -20, 20)
    levels: NDArray[np.uint8] = np.rint(_LEVELS / (1 + np.exp(-squeezed))).astype(np.uint8)
    return levels


def _logit_of_level() -> NDArray[np.float32]:
    """Return the logit of every level; the ends stand for all beyond them."""
    share = np.clip(np.arange(256) / _LEVELS, 0.5 / _LEVELS, 1 - 0.5 / _LEVELS)
    logits: NDArray[np.float32] = (_WIDTH * np.log(share / (1 - share))).astype(np.float32)
    return logits


_LOGIT_OF_LEVEL: Final = _logit_of_level()


def _layout(num_masks: int, height: int, width: int) -> tuple[int, int, int]:
    """Return the size of a mask's place in the picture, and how many stand below each other."""
    block_height, block_width = height + -height % _BLOCK, width + -width % _BLOCK
    return block_height, block_width, min(num_masks, max(1, _MOST_ROWS // block_height))


def _stacked(levels_Qhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the masks below and, where there are many, beside each other."""
    num_masks, height, width = levels_Qhw.shape
    block_height, block_width, per_column = _layout(num_masks, height, width)
    columns = -(-num_masks // per_column)
    spare = per_column * columns - num_masks
    padded = np.pad(
        np.concatenate([levels_Qhw, np.repeat(levels_Qhw[-1:], spare, axis=0)]),
        ((0, 0), (0, block_height - height), (0, block_width - width)),
        "edge",
    )
    stacks = padded.reshape(columns, per_column, block_height, block_width)
    picture = stacks.transpose(1, 2, 0, 3).reshape(per_column * block_height, -1)
    return np.ascontiguousarray(picture)


def _encodings(picture: Image.Image) -> Iterator[bytes]:
    for form, options in _ENCODINGS:
        buffer = BytesIO()
        picture.save(buffer, form, **options)
        yield buffer.getvalue()
