"""Mask logits as they travel between the pools, and the soft masks made from them (spec 2.3).

Dimension key: Q proposals, h w low-resolution grid over the padded image, H W image, T some of its
rows, R rows of different proposals, N positions along a side.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.bilinear import RowTaps, bilinear_taps, resize_rows, resize_width
from pipeline.models.device import fetch, send
from pipeline.resize import Size

Precision = Literal["float32", "float16", "uint8"]

# uint8 covers logits in [-8, 8]: sigmoid is within 0.0004 of 0 and 1 at the ends. Every
# logit keeps its sign (128 is exactly 0), so that no cell crosses a threshold of one half.
_LOGIT_RANGE: Final = 8.0
_STEPS_PER_LOGIT: Final = 127 / _LOGIT_RANGE
_ZERO_CODE: Final = 128


def pack_logits(mask_logits_Qhw: Tensor, precision: Precision) -> NDArray[Any]:
    """Return mask logits as an array of `precision`; uint8 clips them to [-8, 8].

    They are converted where they are, so that a GPU hands over the bytes that travel and no more.
    """
    logits = mask_logits_Qhw.detach().float()
    if precision == "uint8":
        steps = (logits.abs().clamp_max(_LOGIT_RANGE) * _STEPS_PER_LOGIT).round().clamp_min(1)
        logits = (logits.sign() * steps + _ZERO_CODE).to(torch.uint8)
    elif precision == "float16":
        logits = logits.half()
    return fetch(logits)


def unpack_logits(packed_Qhw: NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """Return float32 mask logits from what `pack_logits` returned."""
    packed = send(packed_Qhw, device)
    if packed.dtype == torch.uint8:
        return (packed.float() - _ZERO_CODE) / _STEPS_PER_LOGIT
    return packed.float()


def unpack_grid(
    data: bytes | memoryview,
    shape: tuple[int, int, int],
    precision: Precision,
    device: torch.device | str,
) -> Tensor:
    """Return float32 values (C, h, w) of the bytes of what `pack_logits` returned."""
    return unpack_logits(np.frombuffer(data, precision).reshape(shape), device)


def mask_probs(mask_logits_Qhw: Tensor, padded: Size, size: Size) -> Tensor:
    """Return soft masks (Q, H, W) in (0, 1): upsample to `padded`, crop to `size`, then sigmoid."""
    height, width = size
    if not len(mask_logits_Qhw):
        return mask_logits_Qhw.new_zeros((0, height, width))
    upsampled = interpolate(
        mask_logits_Qhw[None], size=padded, mode="bilinear", align_corners=False
    )[0]
    return upsampled[:, :height, :width].sigmoid()


@dataclass(frozen=True, eq=False)
class SoftMasks:
    """Soft masks (Q, H, W) of which rows are made when they are asked for.

    Whole, they take hundreds of megabytes an image; the logits that they come from a sixteenth.
    """

    logits_Qhw: Tensor
    padded: Size
    size: Size

    def whole(self) -> Tensor:
        """Return all soft masks (Q, H, W)."""
        return mask_probs(self.logits_Qhw, self.padded, self.size)

    def nodes(self, rows: slice) -> Tensor:
        """Return the grid's rows (h, w, Q) of logits that some rows of the image lie between."""
        return self._logits_hwQ[self._row_taps.needed(rows)]

    def reached_columns(self) -> int:
        """Return how many columns of the grid the image reaches; what follows is padding."""
        return int(self._across[1][self.size[1] - 1]) + 1

    def rows(self, rows: slice, among: slice | None = None) -> Tensor:
        """Return some rows of every mask, the masks last (T, W, Q).

        They are the same to the last bit, for which the order of the axes counts, as if all rows
        `among` which they are had been made at once.
        """
        across = [tap[: self.size[1]] for tap in self._across]
        down, among = self._row_taps.within(rows), among or rows
        nodes = self._row_taps.needed(among)
        columns_first = among.stop - among.start > nodes.stop - nodes.start
        return resize_rows(self.nodes(rows), down, across, columns_first).sigmoid_()

    def rows_of(self, proposals_R: Tensor, rows_R: Tensor, columns: slice) -> Tensor:
        """Return some columns of rows (R, W), each row of the proposal beside it."""
        lower, upper, down = (tap[rows_R] for tap in self._down)
        height = self.logits_Qhw.shape[1]
        cells = self.logits_Qhw.flatten(0, 1)
        above_Rw, below_Rw = (
            cells.index_select(0, proposals_R * height + row_R) for row_R in (lower, upper)
        )
        strip_Rw = torch.lerp(above_Rw, below_Rw, down[:, None])
        return resize_width(strip_Rw, self.padded[1])[:, columns].sigmoid()

    def outer_boxes(self, min_prob: float) -> Tensor:
        """Return half-open XYXY boxes (Q, 4) outside of which no probability exceeds `min_prob`.

        They are read off the grid: a pixel between cells lies between their values. Boxes without
        area: no pixel exceeds it.
        """
        if not len(self.logits_Qhw):
            return self.logits_Qhw.new_zeros((0, 4), dtype=torch.int64)
        sides = []
        for axis, (lower, upper, _), length in (
            (2, self._down, self.size[0]),
            (1, self._across, self.size[1]),
        ):
            above_QN = self.logits_Qhw.amax(dim=axis).sigmoid() > min_prob
            sides.append(above_QN[:, lower[:length]] | above_QN[:, upper[:length]])
        return boxes_around(*sides)

    def image_cells(self) -> Tensor:
        """Return the logits (Q, h, w) of the cells whose centres lie inside the image."""
        rows, columns = (
            max(1, math.ceil(length * cells / whole - 0.5))
            for length, cells, whole in zip(
                self.size, self.logits_Qhw.shape[1:], self.padded, strict=True
            )
        )
        return self.logits_Qhw[:, :rows, :columns]

    def hold_pixels(self, min_prob: float) -> Tensor:
        """Return which masks (Q,) hold a pixel whose probability exceeds `min_prob`.

        A pixel row through the highest cell settles it for nearly every mask.
        """
        boxes_Q4 = self.outer_boxes(min_prob)
        found_Q = boxes_Q4[:, 2] > boxes_Q4[:, 0]
        if not found_Q.any():
            return found_Q
        everywhere = slice(None)
        candidates_V = found_Q.nonzero()[:, 0]
        peak_V = self.logits_Qhw[candidates_V].amax(dim=2).argmax(dim=1)
        row_V = ((peak_V + 0.5) * (self.padded[0] / self.logits_Qhw.shape[1])).long()
        rows_VW = self.rows_of(candidates_V, row_V.clamp_max(self.size[0] - 1), everywhere)
        found_Q[candidates_V] = rows_VW[:, : self.size[1]].amax(dim=1) > min_prob
        for proposal in candidates_V[~found_Q[candidates_V]]:
            _, top, _, bottom = boxes_Q4[proposal].tolist()
            rows_R = torch.arange(top, bottom, device=boxes_Q4.device)
            rows_RW = self.rows_of(proposal.expand(len(rows_R)), rows_R, everywhere)
            found_Q[proposal] = bool((rows_RW[:, : self.size[1]] > min_prob).any())
        return found_Q

    @cached_property
    def _logits_hwQ(self) -> Tensor:
        return self.logits_Qhw.permute(1, 2, 0).contiguous()

    # Whoever makes taps keeps those of the last sizes.

    @property
    def _row_taps(self) -> RowTaps:
        return RowTaps.of(self.logits_Qhw.shape[1], self.padded[0])

    @property
    def _down(self) -> tuple[Tensor, Tensor, Tensor]:
        return bilinear_taps(self.logits_Qhw.shape[1], self.padded[0], self.logits_Qhw.device)

    @property
    def _across(self) -> tuple[Tensor, Tensor, Tensor]:
        return bilinear_taps(self.logits_Qhw.shape[2], self.padded[1], self.logits_Qhw.device)


def boxes_around(rows_QH: Tensor, columns_QW: Tensor) -> Tensor:
    """Return half-open XYXY boxes (Q, 4) around the rows and columns that are flagged.

    Where none is, the box is (0, 0, 0, 0).
    """
    (x0, x1), (y0, y1) = _span(columns_QW), _span(rows_QH)
    return torch.stack([x0, y0, x1, y1], dim=1)


def _span(flags_QN: Tensor) -> tuple[Tensor, Tensor]:
    flags = flags_QN.to(torch.uint8)
    some_Q = flags_QN.any(dim=1)
    first = flags.argmax(dim=1)
    last = flags_QN.shape[1] - flags.flip(1).argmax(dim=1)
    return first * some_Q, last * some_Q
