"""What classifiers share that show CLIP an image once, whatever the number of its masks.

The image is squashed to a square, as crops are. Of a mask they know which share of every place of
the tower's grid it covers; it is valid exactly where its crop would be.

Dimension key: B images, Q proposals (in a bias those of the image with most), V valid proposals,
D embedding, S side of the square input, H W image, h w grid of the masks' logits, y x grid of the
tower's places, P places of a grid or of its side, N cells of a side.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from pipeline.masks import SoftMasks
from pipeline.models import RegionEmbeds
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.device import per_channel
from pipeline.models.passes import in_passes, passes_at_once
from pipeline.resize import Size
from schemas.errors import ModelError

# CLIP's input (3, S, S), which masks are valid (Q,), the shares of those (V, y, x).
_Shown = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class WholeImageSettings:
    """How an image and its masks are shown; the side is CLIP's own where there is none."""

    mask_threshold: float = 0.5
    side: int | None = None
    layers: int | None = None  # of masked attention


class Tower(Protocol):
    """An image tower that is asked for what lies under masks."""

    @property
    def grid(self) -> Size:
        """Rows and columns of the places that a mask can hold."""

    def prepared(self) -> AbstractContextManager[None]:
        """Return what the tower must be in while it encodes, once for all passes of it."""

    def encode(self, images_B3SS: Tensor, shares: Sequence[Tensor]) -> list[Tensor]:
        """Return vectors (V, D), of any length, of every image's masks; threads may call it.

        The masks are given by their shares (V, y, x) of every place; in each some is above 0.
        """


class WholeImageClassifier:
    """One pass of a tower for some images with all of their masks."""

    def __init__(
        self,
        clip: Clip,
        tower: Tower,
        side: int,
        settings: WholeImageSettings,
        batch: int | None,
    ) -> None:
        self._clip = clip
        self._tower = tower
        self._side = side
        self._min_prob = settings.mask_threshold
        self._batch = batch or clip.per_pass(side)
        # Who gives a number bounds the memory by it.
        self._at_once = 1 if batch else passes_at_once(clip.device)

    @torch.inference_mode()
    def embed(self, regions: Iterable[tuple[Tensor, Tensor | SoftMasks]]) -> list[RegionEmbeds]:
        """Return the vectors of every image's valid proposals."""
        found: list[RegionEmbeds] = []
        waiting: list[_Shown] = []
        for image_3HW, masks in regions:
            valid_Q = holds_pixels(masks, self._min_prob)
            shares_Qyx = grid_shares(masks, self._min_prob, self._tower.grid)
            waiting.append((self._input(image_3HW), valid_Q, shares_Qyx[valid_Q]))
            if len(waiting) == self._batch * self._at_once:
                found += self._encode(waiting)
                waiting = []
        return found + self._encode(waiting)

    def _input(self, image_3HW: Tensor) -> Tensor:
        """Return CLIP's input (3, S, S), bicubic and antialiased as in CLIP's own preparation."""
        size = (self._side, self._side)
        image_3SS = interpolate(image_3HW[None].float(), size, mode="bicubic", antialias=True)[0]
        mean_311, std_311 = (
            per_channel(values, image_3HW.device) for values in (self._clip.mean, self._clip.std)
        )
        return (image_3SS.clamp(0, 255) / 255 - mean_311) / std_311

    def _encode(self, images: Sequence[_Shown]) -> list[RegionEmbeds]:
        with self._tower.prepared():
            parts = in_passes(self._passed, images, self._batch, self._at_once)
        return list(chain.from_iterable(parts))

    def _passed(self, images: Sequence[_Shown]) -> list[RegionEmbeds]:
        inputs, valid, shares = ([image[part] for image in images] for part in range(3))
        if not any(map(len, shares)):
            return [RegionEmbeds(one, torch.zeros((0, 0), device=one.device)) for one in valid]
        dtype = next(self._clip.model.visual.parameters()).dtype
        vectors = self._tower.encode(torch.stack(inputs).to(dtype), shares)
        return [
            RegionEmbeds(valid_Q, normalize(vectors_VD.float(), dim=1))
            for valid_Q, vectors_VD in zip(valid, vectors, strict=True)
        ]


def holds_pixels(masks: Tensor | SoftMasks, min_prob: float) -> Tensor:
    """Return which masks (Q,) hold a pixel whose probability exceeds `min_prob`."""
    if isinstance(masks, SoftMasks):
        return masks.hold_pixels(min_prob)
    return (masks > min_prob).flatten(1).any(dim=1)


def grid_shares(masks: Tensor | SoftMasks, min_prob: float, grid: Size) -> Tensor:
    """Return which share (Q, y, x) of every place of a grid over the image each mask covers.

    A cell of the masks' own grid counts whole or not at all. For a mask whose cells above
    `min_prob` all lie outside the image its probabilities are taken, which are nowhere 0.
    """
    if isinstance(masks, SoftMasks):
        cells_Qhw, padded, size = masks.logits_Qhw, masks.padded, masks.size
        threshold = math.log(min_prob / (1 - min_prob))
    else:
        cells_Qhw, padded = masks, (masks.shape[1], masks.shape[2])
        size, threshold = padded, min_prob
    down_yh, across_xw = (
        _overlaps(cells, whole / cells, length / places, places).to(cells_Qhw.device)
        for cells, whole, length, places in zip(
            cells_Qhw.shape[1:], padded, size, grid, strict=True
        )
    )
    shares_Qyx: Tensor = down_yh @ (cells_Qhw > threshold).float() @ across_xw.T
    if isinstance(masks, SoftMasks):
        nowhere_Q = (shares_Qyx <= 0).flatten(1).all(dim=1)
        shares_Qyx[nowhere_Q] = down_yh @ cells_Qhw[nowhere_Q].sigmoid() @ across_xw.T
    return shares_Qyx


def _overlaps(cells: int, cell: float, place: float, places: int) -> Tensor:
    """Return which share of every place each cell takes (P, N); both divide one side evenly."""
    cell_N, place_P1 = torch.arange(cells) * cell, torch.arange(places)[:, None] * place
    overlap_PN = (cell_N + cell).minimum(place_P1 + place) - cell_N.maximum(place_P1)
    return overlap_PN.clamp_min(0) / place


def attention_bias(shares: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return what is added to the attention logits of mask tokens: (B, Q, Q + P).

    A token attends to itself alone among tokens, and to a place with a weight that goes with the
    square of the covered share, 1 where that is largest: 0.7 points of hIoU more on synthetic
    scenes than the share itself, which goes with area. Tokens that only fill up a batch attend to
    all places.
    """
    flat = [shares_Vyx.flatten(1).float() for shares_Vyx in shares]
    most, places = max(map(len, flat)), flat[0].shape[1]
    weights_BQP = flat[0].new_ones((len(flat), most, places))
    for weights_QP, shares_VP in zip(weights_BQP, flat, strict=True):
        weights_QP[: len(shares_VP)] = (shares_VP / shares_VP.amax(dim=1, keepdim=True)) ** 2
    own_BQQ = torch.eye(most, device=weights_BQP.device).expand(len(flat), -1, -1)
    return torch.cat([own_BQQ, weights_BQP], dim=2).log().to(dtype)


def tower_config(source: ClipSource) -> dict[str, Any]:
    """Return open_clip's config of the image tower."""
    vision: dict[str, Any] = source.config()["vision_cfg"]
    return vision


def check_side(source: ClipSource, side: int | None, place: int) -> None:
    """Raise ModelError unless a side holds whole places of the tower's grid."""
    if side is not None and side % place:
        below = side // place * place
        raise ModelError(
            f"image_side is {side}, but clip {source.name!r} divides its input into squares of "
            f"{place}: {f'{below} or ' if below else ''}{below + place} would do"
        )
