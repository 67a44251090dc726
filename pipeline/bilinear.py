"""Bilinear resizing of some rows of a map at a time (half-pixel centres, no antialias).

Dimension key: Q maps, H W pixels, T target rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_SIZES: Final = 256


@lru_cache(_SIZES)
def bilinear_taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return lower index, upper index and upper weight per target position (half-pixel centres).

    Sizes recur from image to image, and what was computed of the last ones is kept.
    """
    with torch.inference_mode(False):  # whatever mode the next caller is in
        scale = source / target
        centre = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
        centre = centre.clamp_min(0.0)
        lower = centre.floor().long().clamp_max(source - 1)
        upper = (lower + 1).clamp_max(source - 1)
        return lower, upper, centre - lower


@dataclass(frozen=True)
class RowTaps:
    """Which two rows of a map each row of a taller or shorter one lies between.

    Numbers of the host, whatever device the map is on.
    """

    lower: list[int]
    upper: list[int]
    weight: list[float]  # of the upper one

    @classmethod
    @lru_cache(_SIZES)
    def of(cls, source: int, target: int) -> Self:
        """Resize `source` rows to `target`."""
        lower, upper, weight = bilinear_taps(source, target, torch.device("cpu"))
        return cls(lower.tolist(), upper.tolist(), weight.tolist())

    def needed(self, rows: slice) -> slice:
        """Return the rows of the map that some target rows lie between."""
        return slice(self.lower[rows.start], self.upper[rows.stop - 1] + 1)

    def within(self, rows: slice) -> "RowTaps":
        """Return the taps of some target rows, in a map of only the needed rows."""
        first = self.lower[rows.start]
        lower, upper = ([row - first for row in side[rows]] for side in (self.lower, self.upper))
        return RowTaps(lower, upper, self.weight[rows])


def resize_rows(
    values_HWQ: Tensor, down: RowTaps, across: Sequence[Tensor], columns_first: bool | None = None
) -> Tensor:
    """Return some rows and columns of bilinearly resized maps (T, W, Q); it shares no memory.

    `across` are `bilinear_taps` of the columns. Maps come last, so that all numbers of a pixel lie
    side by side and every step goes through memory in long pieces.
    """
    if columns_first is None:  # each axis while the other is short
        columns_first = len(down.lower) > len(values_HWQ)
    if columns_first:
        return _rows(_columns(values_HWQ, across), down)
    return _columns(_rows(values_HWQ, down), across)


def _rows(values_HWQ: Tensor, taps: RowTaps) -> Tensor:
    if values_HWQ.device.type == "cpu":
        return rows_one_by_one(values_HWQ, taps)
    return rows_at_once(values_HWQ, taps)


def rows_one_by_one(values_HWQ: Tensor, taps: RowTaps) -> Tensor:
    """Return the rows (T, W, Q), without the copies that picking their sources would make."""
    resized_TWQ = values_HWQ.new_empty((len(taps.lower), *values_HWQ.shape[1:]))
    sources = values_HWQ.unbind(0)
    for row, lower, upper, weight in zip(
        resized_TWQ.unbind(0), taps.lower, taps.upper, taps.weight, strict=True
    ):
        torch.lerp(sources[lower], sources[upper], weight, out=row)
    return resized_TWQ


def rows_at_once(values_HWQ: Tensor, taps: RowTaps) -> Tensor:
    """Return the same in a few operations, as a GPU wants them."""
    device = values_HWQ.device
    lower_TWQ, upper_TWQ = (
        values_HWQ.index_select(0, torch.tensor(rows, device=device))
        for rows in (taps.lower, taps.upper)
    )
    weight_T11 = torch.tensor(taps.weight, device=device)[:, None, None]
    return torch.lerp(lower_TWQ, upper_TWQ, weight_T11)


def _columns(values_HWQ: Tensor, taps: Sequence[Tensor]) -> Tensor:
    lower, upper, weight = taps
    lower_HWQ, upper_HWQ = (values_HWQ.index_select(1, index) for index in (lower, upper))
    return torch.lerp(lower_HWQ, upper_HWQ, weight[:, None])


def resize_width(values: Tensor, width: int) -> Tensor:
    """Resize the last axis of a tensor of any shape."""
    if values.shape[-1] == width:
        return values
    if not values.numel():  # interpolate refuses an empty batch
        return values.new_zeros((*values.shape[:-1], width))
    flat = values.reshape(-1, values.shape[-1])
    if flat.is_cuda:
        # The same numbers: torch's linear kernel has one thread a column, which goes through all
        # rows one after the other; the bilinear one has a thread a pixel.
        size = (len(flat), width)
        resized = interpolate(flat[None, None], size=size, mode="bilinear", align_corners=False)
    else:
        resized = interpolate(flat[None], size=width, mode="linear", align_corners=False)
    return resized.reshape(*values.shape[:-1], width)
