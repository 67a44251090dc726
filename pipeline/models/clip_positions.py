"""A CLIP's image tower for an input that is not its own square: positions are interpolated.

Dimension key: G positions of the grid, W width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.resize import Size
from schemas.errors import ModelError

_RESNET_STRIDE = 32


@contextmanager
def input_size(visual: Any, size: Size) -> Iterator[None]:
    """Let an image tower take inputs of (height, width); rows that fill no patch are left out.

    Positions are resampled bicubically, as the reference's CLIP does. Raises ModelError for a
    tower whose positions are not known.
    """
    holder = _holder(visual)
    known: nn.Parameter = holder.positional_embedding
    resampled = resample(known.detach(), _grid(visual, _own_size(visual)), _grid(visual, size))
    holder.positional_embedding = nn.Parameter(resampled, requires_grad=False)
    try:
        yield
    finally:
        holder.positional_embedding = known


def resample(positions: Tensor, grid: Size, wanted: Size) -> Tensor:
    """Return the positions (1 + G, W) of another grid; the first, of no place, stays."""
    if grid == wanted:
        return positions.clone()
    places_1WGG = positions[1:].T.reshape(1, -1, *grid)
    places_1WGG = interpolate(places_1WGG, size=wanted, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], places_1WGG[0].flatten(1).T])


def check_input_size(visual: Any, size: Size) -> None:
    """Raise ModelError for a tower that cannot take inputs of (height, width)."""
    with input_size(visual, size):
        pass


def _holder(visual: Any) -> Any:
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool
    if isinstance(visual, VisionTransformer):
        return visual
    raise ModelError(
        f"positions of an image tower of kind {type(visual).__name__} cannot be interpolated, so "
        "that it takes its own square alone: set region_shape to square"
    )


def _own_size(visual: Any) -> Size:
    size = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _grid(visual: Any, size: Size) -> Size:
    height, width = size
    if isinstance(visual, ModifiedResNet):
        return height // _RESNET_STRIDE, width // _RESNET_STRIDE
    patch_height, patch_width = visual.patch_size
    return height // patch_height, width // patch_width
