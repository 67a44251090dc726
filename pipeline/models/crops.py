"""Regions of an image cut out for CLIP, many at once (spec 2.4, 8.2).

What lies outside a mask is the fill colour, so that a crop is (image - fill) * mask, resized, plus
fill. Only rows of the image that a mask can reach are made, all of some regions in one table; the
bicubic filter is then two weighted gathers from it, four rows and four columns per output pixel.

Dimension key: Q proposals, V regions, H W image, R rows of all regions' boxes one after the other,
S side of CLIP's square input, N its positions, A the four taps of the filter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.masks import SoftMasks, boxes_around
from pipeline.models.device import per_channel
from pipeline.resize import Size

# Bound on the floats of one table: what stays in a core's cache; a GPU wants fewer and larger ones.
_TABLE_FLOATS: Final = 2**21
_TIMES_ON_GPU: Final = 64

_CUBIC: Final = -0.75  # the reference's coefficient of the bicubic filter


@dataclass(frozen=True)
class CropSettings:
    """How a region becomes CLIP's input; the defaults are the paper's."""

    mask_threshold: float = 0.5
    fill: str = "mean"  # or "zero"
    expand_ratio: float = 1.0
    matting: bool = False
    min_shared_iou: float | None = None  # masks that overlap so much share a crop; None: none do


@dataclass(frozen=True)
class Regions:
    """Which proposals hold a pixel above the threshold, and the crops of those, in order."""

    valid_Q: Tensor  # bool
    boxes_V4: Tensor  # int64 XYXY, half-open, of the binary mask
    crops_V3SS: Tensor  # float32, normalised with CLIP's mean and std


def crop_regions(
    image_3HW: Tensor,
    masks: Tensor | SoftMasks,
    settings: CropSettings,
    *,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Regions:
    """Cut every valid proposal out of a uint8 image and squash it to `side` x `side`.

    The masks are soft, either (Q, H, W) or still to be made. Outside the mask is CLIP's mean colour
    (0 after normalisation) or black. Bicubic with a = -0.75, no antialias, edges clamped, aspect
    not kept: what the reference does.
    """
    cutter = _Cutter.of(image_3HW, masks, settings, side, mean, std)
    # On the host, where groups are made of them: a GPU is waited for here, and once a group.
    outer_Q4 = cutter.outer_boxes().cpu()
    found_V = (outer_Q4[:, 2] > outer_Q4[:, 0]).nonzero()[:, 0]
    crops_V3SS = cutter.image_H3W.new_empty((len(found_V), 3, side, side))
    valid_Q = torch.zeros(len(outer_Q4), dtype=torch.bool, device=image_3HW.device)
    boxes, count = [outer_Q4[:0].to(image_3HW.device)], 0
    for group, columns in cutter.groups(outer_Q4[found_V]):
        proposals_V = found_V[group]
        queries_V, boxes_V4, part_V3SS = cutter.cut(proposals_V, outer_Q4[proposals_V], columns)
        valid_Q[queries_V] = True
        boxes.append(boxes_V4)
        crops_V3SS[count : count + len(queries_V)] = part_V3SS
        count += len(queries_V)
    return Regions(valid_Q, torch.cat(boxes), crops_V3SS[:count])


@dataclass(frozen=True, eq=False)
class _Cutter:
    """One image and its masks, and how regions are cut from them."""

    image_H3W: Tensor  # normalised, less the fill colour
    fill_311: Tensor  # normalised
    masks: Tensor | SoftMasks
    settings: CropSettings
    side: int

    @classmethod
    def of(
        cls,
        image_3HW: Tensor,
        masks: Tensor | SoftMasks,
        settings: CropSettings,
        side: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> "_Cutter":
        mean_311, std_311 = (
            255.0 * per_channel(values, image_3HW.device) for values in (mean, std)
        )
        fill_311 = mean_311 if settings.fill == "mean" else torch.zeros_like(mean_311)
        image_H3W = image_3HW.transpose(0, 1).contiguous().float() - fill_311[..., 0]
        image_H3W /= std_311[..., 0]
        return cls(image_H3W, (fill_311 - mean_311) / std_311, masks, settings, side)

    @property
    def size(self) -> Size:
        return self.image_H3W.shape[0], self.image_H3W.shape[2]

    def outer_boxes(self) -> Tensor:
        """Return boxes (Q, 4) that hold the binary masks; without area where there is none."""
        threshold = self.settings.mask_threshold
        if isinstance(self.masks, SoftMasks):
            return self.masks.outer_boxes(threshold)
        binary_QHW = self.masks > threshold
        return boxes_around(binary_QHW.any(dim=2), binary_QHW.any(dim=1))

    def groups(self, boxes_V4: Tensor) -> Iterator[tuple[slice, slice]]:
        """Yield as many regions in order as one table holds, and the columns that it needs."""
        grown = expand_boxes(boxes_V4, self.settings.expand_ratio, self.size).tolist()
        on_cpu = self.image_H3W.device.type == "cpu"
        budget = _TABLE_FLOATS // 3 * (1 if on_cpu else _TIMES_ON_GPU)
        start, rows, left, right = 0, 0, self.size[1], 0
        for index, (x0, y0, x1, y1) in enumerate(grown):
            # The table, and what remains of it after the first of the two gathers.
            more, width = y1 - y0 + self.side, max(right, x1) - min(left, x0)
            if rows and (rows + more) * width > budget:
                yield slice(start, index), slice(left, right)
                start, rows, left, right = index, 0, self.size[1], 0
            rows, left, right = rows + more, min(left, x0), max(right, x1)
        if rows:
            yield slice(start, None), slice(left, right)

    def cut(
        self, proposals_V: Tensor, outer_V4: Tensor, columns: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return which of some proposals are valid, their boxes, and their crops.

        `outer_V4` are boxes that hold their masks, and `columns` holds those, grown; on the host.
        """
        ratio, size = self.settings.expand_ratio, self.size
        _, first_V, _, stop_V = expand_boxes(outer_V4, ratio, size).unbind(1)
        rows_V = stop_V - first_V
        num_rows, start_V = int(rows_V.sum()), rows_V.cumsum(0) - rows_V  # of a region in the table
        plan_4V = torch.stack([proposals_V, first_V, rows_V, start_V])
        proposals_V, first_V, rows_V, start_V = plan_4V.to(self.image_H3W.device).unbind(0)
        region_R = torch.repeat_interleave(rows_V, output_size=num_rows)
        row_R = torch.arange(num_rows, device=region_R.device) + (first_V - start_V)[region_R]
        probs_RW = self._mask_rows(proposals_V[region_R], row_R, columns)
        inside_RW = (probs_RW > self.settings.mask_threshold).float()
        boxes_V4 = _tight_boxes(inside_RW, region_R, row_R, (len(proposals_V), size[0]))
        valid_V = (boxes_V4[:, 2] > 0).nonzero()[:, 0]
        boxes_V4 = boxes_V4[valid_V]
        boxes_V4[:, 0::2] += columns.start

        blend_RW = probs_RW.float() if self.settings.matting else inside_RW
        table_R3W = self.image_H3W[..., columns].index_select(0, row_R).mul_(blend_RW[:, None])
        grown_V4 = expand_boxes(boxes_V4, ratio, size)
        places_2VNA, weights_2VNA = _cubic_taps(grown_V4, self.side)
        down_VNA = places_2VNA[0] + (start_V - first_V)[valid_V, None, None]
        rows_VNX = _weighted(table_R3W.flatten(1), down_VNA, weights_2VNA[0])
        # Columns side by side, so that each is one piece of memory.
        width = blend_RW.shape[1]
        rows_VXW = rows_VNX.view(len(boxes_V4), 3 * self.side, width)
        columns_CX = rows_VXW.transpose(1, 2).flatten(0, 1)
        start_V = torch.arange(len(boxes_V4), device=region_R.device) * width - columns.start
        across_VNA = places_2VNA[1] + start_V[:, None, None]
        crops_VNX = _weighted(columns_CX, across_VNA, weights_2VNA[1])
        crops_VNN3 = crops_VNX.view(-1, self.side, self.side, 3)
        crops_V3SS = crops_VNN3.permute(0, 3, 2, 1) + self.fill_311
        return proposals_V[valid_V], boxes_V4, crops_V3SS

    def _mask_rows(self, proposals_R: Tensor, rows_R: Tensor, columns: slice) -> Tensor:
        if isinstance(self.masks, SoftMasks):
            return self.masks.rows_of(proposals_R, rows_R, columns)
        return self.masks[..., columns][proposals_R, rows_R]


def _tight_boxes(
    inside_RW: Tensor, region_R: Tensor, row_R: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Return the boxes (V, 4) of masks given by rows; `shape` is (V, H). (0, 0, 0, 0): no pixel."""
    rows_VH = torch.zeros(shape, dtype=torch.bool, device=inside_RW.device)
    rows_VH[region_R, row_R] = inside_RW.amax(dim=1) > 0
    columns_VW = inside_RW.new_zeros((shape[0], inside_RW.shape[1]))
    columns_VW.index_add_(0, region_R, inside_RW)
    return boxes_around(rows_VH, columns_VW > 0)


def _cubic_taps(boxes_V4: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return places in the image and weights, both (2, V, N, A), of a bicubic resize of boxes to
    `side`: down, then across.

    Half-pixel centres; places are clamped to the box.
    """
    start_2V, stop_2V = boxes_V4.T.reshape(2, 2, -1).flip(1).unbind(0)
    scale_2V1 = ((stop_2V - start_2V) / side)[..., None]
    centre_2VN = (torch.arange(side, device=boxes_V4.device) + 0.5) * scale_2V1 - 0.5
    base_2VN = centre_2VN.floor()
    t = centre_2VN - base_2VN
    outer, inner = _far(torch.stack([t + 1, 2 - t])), _near(torch.stack([t, 1 - t]))
    weights_2VNA = torch.stack([outer[0], inner[0], inner[1], outer[1]], dim=3)
    offset_A = torch.arange(-1, 3, device=boxes_V4.device)
    last_2V11 = (stop_2V - start_2V - 1)[..., None, None]
    places_2VNA = (base_2VN.long()[..., None] + offset_A).clamp_min(0).minimum(last_2V11)
    return places_2VNA + start_2V[..., None, None], weights_2VNA


def _near(distance: Tensor) -> Tensor:
    """Return the filter's weight at a distance up to 1."""
    return ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1


def _far(distance: Tensor) -> Tensor:
    """Return the filter's weight at a distance from 1 to 2."""
    a = _CUBIC
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a


def _weighted(lines_RX: Tensor, places_VNA: Tensor, weights_VNA: Tensor) -> Tensor:
    """Return (V, N, X): for every position the sum of a few lines, weighted."""
    sums = embedding_bag(
        places_VNA.flatten(0, 1), lines_RX, mode="sum", per_sample_weights=weights_VNA.flatten(0, 1)
    )
    return sums.view(*places_VNA.shape[:2], lines_RX.shape[1])


def expand_boxes(boxes_V4: Tensor, ratio: float, size: Size) -> Tensor:
    """Grow boxes about their centres, truncate coordinates toward zero, clamp them to the image."""
    height, width = size
    low_V2, high_V2 = boxes_V4[:, :2].double(), boxes_V4[:, 2:].double()
    centre_V2, half_V2 = (low_V2 + high_V2) / 2, (high_V2 - low_V2) * ratio / 2
    grown_V4 = torch.cat([centre_V2 - half_V2, centre_V2 + half_V2], dim=1).long()
    grown_V4[:, 0::2].clamp_(0, width)
    grown_V4[:, 1::2].clamp_(0, height)
    return grown_V4
