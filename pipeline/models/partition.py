"""Regions of an image: their masks on the grid of proposals, their borders, their merging.

Dimension key: Q proposals, H W image, h w mask grid, R regions, N neighbouring pixels, E pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models import ProposerCard
from pipeline.resize import padded_size
from schemas.errors import ModelError

DIVISOR: Final = 32  # images are padded to a multiple of this, the same as a MaskFormer's

_STRIDE: Final = 4  # of the mask grid
# A cell is inside to the share that the region covers; the share is kept off 0 and 1 so that its
# logit is finite.
_MARGIN: Final = 0.01


def weight_free_card(name: str, weights: str | None, *, short_edge: int) -> ProposerCard:
    """Return the card of a proposer of scikit-image; raises ModelError when it is given weights."""
    if weights is not None:
        raise ModelError(f"proposer {name} has no weights; proposer_weights is {weights!r}")
    return ProposerCard(
        short_edge=short_edge,
        long_edge=4 * short_edge,
        divisor=DIVISOR,
        embedding_dim=None,
        weights_sha256=None,
        licence="BSD-3-Clause (scikit-image)",
    )


def grid_logits(masks_QHW: NDArray[np.bool_]) -> torch.Tensor:
    """Return masks of the image as logits (Q, h, w) at stride 4 over the padded image.

    Cells that the image's edge cuts are compared with what they can hold, not with a full cell.
    """
    height, width = masks_QHW.shape[1:]
    filled_Qhw = _fill_cells(masks_QHW)
    whole_1hw = _fill_cells(np.ones((1, height, width), dtype=np.bool_))
    share_Qhw = torch.from_numpy(filled_Qhw).float() / torch.from_numpy(whole_1hw).clamp_min(1)
    return share_Qhw.clamp(_MARGIN, 1.0 - _MARGIN).logit()


def _fill_cells(masks_QHW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Count the pixels inside each cell."""
    height, width = padded_size(masks_QHW.shape[1:], DIVISOR)
    counts_Qhw = np.zeros((len(masks_QHW), height // _STRIDE, width // _STRIDE), dtype=np.uint8)
    for top in range(_STRIDE):
        for left in range(_STRIDE):
            sampled = masks_QHW[:, top::_STRIDE, left::_STRIDE]
            counts_Qhw[:, : sampled.shape[1], : sampled.shape[2]] += sampled
    return counts_Qhw


def region_masks(regions_HW: NDArray[np.integer[Any]]) -> list[NDArray[np.bool_]]:
    """Return the mask of every number that occurs in a partition, in ascending order."""
    return [regions_HW == region for region in np.unique(regions_HW)]


def distinct(masks: Iterable[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Return the masks without repetitions, in order; all are of one size."""
    return list({np.packbits(mask).tobytes(): mask for mask in masks}.values())


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of neighbouring regions, lower first."""

    pairs_E2: NDArray[np.int64]
    sums_E: NDArray[np.float64]  # of the values along the border
    lengths_E: NDArray[np.int64]  # of the border, in pairs of pixels


@dataclass(frozen=True, eq=False)
class Borders:
    """Pairs of neighbouring pixels (4-neighbours) of different regions, lower region first."""

    pairs_N2: NDArray[np.int64]
    values_N: NDArray[np.float64]  # the larger value of the two pixels

    @classmethod
    def of(
        cls, regions_HW: NDArray[np.integer[Any]], values_HW: NDArray[np.float64] | None = None
    ) -> "Borders":
        """Find all borders; values are 0 where there is no map of them."""
        values_HW = np.zeros(regions_HW.shape) if values_HW is None else values_HW
        pairs, values = [], []
        for axis in (0, 1):
            near, far = _neighbours(regions_HW.astype(np.int64), axis)
            differ = near != far
            pairs.append(np.stack([near[differ], far[differ]], axis=1))
            values.append(np.maximum(*_neighbours(values_HW, axis))[differ])
        return cls(np.sort(np.concatenate(pairs), axis=1), np.concatenate(values))

    def edges(self) -> "Edges":
        """Return every pair of regions once, with what its border adds up to."""
        base = int(self.pairs_N2.max(initial=0)) + 1
        codes, places, lengths = np.unique(
            self.pairs_N2[:, 0] * base + self.pairs_N2[:, 1],
            return_inverse=True,
            return_counts=True,
        )
        sums = np.zeros(len(codes))
        np.add.at(sums, places, self.values_N)
        return Edges(np.stack([codes // base, codes % base], axis=1), sums, lengths)


def _neighbours(values_HW: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return (values_HW[:-1], values_HW[1:]) if axis == 0 else (values_HW[:, :-1], values_HW[:, 1:])


class Mergeable(Protocol):
    """What `merge_greedily` asks of regions, which are numbers."""

    def costs(self, region: int, others: list[int]) -> list[float]:
        """Return the cost of merging `region` with each of `others`, its neighbours."""

    def join(self, first: int, second: int, merged: int) -> None:
        """Take note that the region `merged` replaces two others."""


@dataclass(frozen=True)
class Merge:
    """Two regions that became one; the i-th merge makes region number R + i."""

    first: int
    second: int
    cost: float


def merge_greedily(
    regions: Mergeable, num_regions: int, pairs_E2: NDArray[np.int64], max_cost: float = np.inf
) -> list[Merge]:
    """Merge the cheapest pair of neighbours again and again while it costs at most `max_cost`.

    Of equal costs the lower numbers go first, so that the result is the same in every run.
    """
    around: dict[int, set[int]] = {region: set() for region in range(num_regions)}
    for low, high in pairs_E2.tolist():
        around[low].add(high)
        around[high].add(low)
    heap = []
    for region, others in around.items():
        higher = sorted(other for other in others if other > region)
        heap += [
            (cost, region, other)
            for cost, other in zip(regions.costs(region, higher), higher, strict=True)
        ]
    heapify(heap)
    merges: list[Merge] = []
    while heap:
        cost, first, second = heappop(heap)
        if cost > max_cost:
            break
        if first not in around or second not in around:
            continue  # one of them is already part of a larger region
        merged = num_regions + len(merges)
        merges.append(Merge(first, second, cost))
        around[merged] = (around.pop(first) | around.pop(second)) - {first, second}
        regions.join(first, second, merged)
        others_of_merged = sorted(around[merged])
        for other in others_of_merged:
            around[other] -= {first, second}
            around[other].add(merged)
        costs = regions.costs(merged, others_of_merged)
        for cost, other in zip(costs, others_of_merged, strict=True):
            heappush(heap, (cost, other, merged))
    return merges


def owners(num_regions: int, merges: list[Merge]) -> NDArray[np.int64]:
    """Return for every region (R,) the number of the merged region that it ended up in."""
    owner = np.arange(num_regions + len(merges))
    for index in reversed(range(len(merges))):
        merge = merges[index]
        owner[[merge.first, merge.second]] = owner[num_regions + index]
    return owner[:num_regions]
