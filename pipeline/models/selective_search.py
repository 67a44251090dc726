"""Weight-free proposals: selective search as the paper compares it (spec 1.1), a flat partition.

After Uijlings et al. (IJCV 2013): small regions are merged while neighbours look alike in size,
colour, texture and fill. Dimension key: H W image, R regions, B bins of all histograms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2hsv
from skimage.feature import local_binary_pattern
from skimage.segmentation import felzenszwalb

from pipeline.models import Proposals, ProposerEntry
from pipeline.models.partition import (
    Borders,
    grid_logits,
    merge_greedily,
    owners,
    region_masks,
    weight_free_card,
)

_CHANNELS: Final = 3


@dataclass(frozen=True)
class SelectiveSearchSettings:
    """The paper's values; sizes are pixels of the resized image."""

    scale: float = 20.0  # of the first partition: larger scale, larger regions
    sigma: float = 0.8
    min_size: int = 1000
    colour_bins: int = 25  # per channel of HSV
    texture_points: int = 24
    texture_radius: int = 3  # pixels
    texture_bins: int = 80  # per channel of RGB, over the range of local binary patterns
    min_similarity: float = 0.65  # [0, 1]; neighbours less alike are not merged


@dataclass(frozen=True)
class SelectiveSearch:
    """Proposals that do not overlap and cover the image."""

    settings: SelectiveSearchSettings = field(default_factory=SelectiveSearchSettings)

    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return the partition of each image, largest region first; images may differ in size."""
        return [Proposals(grid_logits(self._masks(image))) for image in images]

    def _masks(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.bool_]:
        masks = region_masks(partition(image_HW3, self.settings))
        return np.stack(sorted(masks, key=np.count_nonzero, reverse=True))


def partition(
    image_HW3: NDArray[np.uint8], settings: SelectiveSearchSettings
) -> NDArray[np.integer]:
    """Return the region number of every pixel (H, W); numbers need not be consecutive."""
    small_HW = felzenszwalb(
        image_HW3, scale=settings.scale, sigma=settings.sigma, min_size=settings.min_size
    )
    num_small = int(small_HW.max()) + 1
    pairs_E2 = Borders.of(small_HW).edges().pairs_E2
    look = _Look.of(image_HW3, small_HW, settings)
    # Costs are dissimilarities, so that the most similar neighbours are the cheapest.
    merges = merge_greedily(look, num_small, pairs_E2, max_cost=1.0 - settings.min_similarity)
    merged_HW: NDArray[np.integer] = owners(num_small, merges)[small_HW]
    return merged_HW


@dataclass(frozen=True, eq=False)
class _Look:
    """Size, extent and histograms of regions; arrays have room for every merged region."""

    area: float  # of the image
    areas_R: NDArray[np.float64]
    boxes_R4: NDArray[np.int64]  # half-open: y0, x0, y1, x1
    colour_RB: NDArray[np.float64]  # pixel counts
    texture_RB: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        image_HW3: NDArray[np.uint8],
        regions_HW: NDArray[np.integer],
        settings: SelectiveSearchSettings,
    ) -> "_Look":
        colours_HW3 = _binned(rgb2hsv(image_HW3) * 255.0, 256.0, settings.colour_bins)
        points, radius = settings.texture_points, settings.texture_radius
        patterns_HW3 = np.stack(
            [local_binary_pattern(image_HW3[..., c], points, radius) for c in range(_CHANNELS)],
            axis=2,
        )
        textures_HW3 = _binned(patterns_HW3, 2.0**points, settings.texture_bins)
        num_regions = int(regions_HW.max()) + 1
        room = ((0, num_regions - 1), (0, 0))
        areas_R = np.bincount(regions_HW.ravel()).astype(np.float64)
        return cls(
            area=float(regions_HW.size),
            areas_R=np.pad(areas_R, room[0]),
            boxes_R4=np.pad(_boxes(regions_HW, num_regions), room),
            colour_RB=np.pad(_histograms(regions_HW, colours_HW3, settings.colour_bins), room),
            texture_RB=np.pad(_histograms(regions_HW, textures_HW3, settings.texture_bins), room),
        )

    def costs(self, region: int, others: list[int]) -> list[float]:
        """Return 1 - the mean of the four similarities, each in [0, 1]."""
        together_R = self.areas_R[region] + self.areas_R[others]
        low_R2 = np.minimum(self.boxes_R4[region, :2], self.boxes_R4[others, :2])
        high_R2 = np.maximum(self.boxes_R4[region, 2:], self.boxes_R4[others, 2:])
        size = 1.0 - together_R / self.area
        fill = 1.0 - ((high_R2 - low_R2).prod(axis=1) - together_R) / self.area
        shared = [
            self._shared(histograms_RB, region, others)
            for histograms_RB in (self.colour_RB, self.texture_RB)
        ]
        costs: list[float] = (1.0 - np.mean([size, fill, *shared], axis=0)).tolist()
        return costs

    def _shared(
        self, histograms_RB: NDArray[np.float64], region: int, others: list[int]
    ) -> NDArray[np.float64]:
        """Return the intersection of histograms that are normalised to a sum of one."""
        mine_B = histograms_RB[region] / (_CHANNELS * self.areas_R[region])
        theirs_RB = histograms_RB[others] / (_CHANNELS * self.areas_R[others, None])
        shared: NDArray[np.float64] = np.minimum(mine_B, theirs_RB).sum(axis=1)
        return shared

    def join(self, first: int, second: int, merged: int) -> None:
        """Add up what adds up; the histogram of a union is the sum of counts."""
        for values in (self.areas_R, self.colour_RB, self.texture_RB):
            values[merged] = values[first] + values[second]
        boxes = self.boxes_R4
        boxes[merged, :2] = np.minimum(boxes[first, :2], boxes[second, :2])
        boxes[merged, 2:] = np.maximum(boxes[first, 2:], boxes[second, 2:])


def _binned(values: NDArray[np.float64], end: float, bins: int) -> NDArray[np.int64]:
    """Return the bin of each value in [0, end)."""
    return (values * (bins / end)).astype(np.int64).clip(0, bins - 1)


def _histograms(
    regions_HW: NDArray[np.integer], bins_HW3: NDArray[np.int64], bins: int
) -> NDArray[np.float64]:
    """Return the counts (R, 3 * bins) of every region, channel after channel."""
    per_region = _CHANNELS * bins
    num_regions = int(regions_HW.max()) + 1
    cells = regions_HW[..., None] * per_region + np.arange(_CHANNELS) * bins + bins_HW3
    counts = np.bincount(cells.ravel(), minlength=num_regions * per_region)
    return counts.reshape(num_regions, per_region).astype(np.float64)


def _boxes(regions_HW: NDArray[np.integer], num_regions: int) -> NDArray[np.int64]:
    height, width = regions_HW.shape
    boxes_R4 = np.tile(np.array([height, width, 0, 0]), (num_regions, 1))
    rows, columns = np.indices(regions_HW.shape)
    flat = regions_HW.ravel()
    for index, places in enumerate((rows, columns)):
        np.minimum.at(boxes_R4[:, index], flat, places.ravel())
        np.maximum.at(boxes_R4[:, index + 2], flat, places.ravel() + 1)
    return boxes_R4


SELECTIVE_SEARCH: Final = ProposerEntry(
    summary="weight-free: selective search, a partition by likeness (scikit-image)",
    # 640 is the size that the paper's pixel counts are meant for.
    describe=partial(weight_free_card, "selective-search", short_edge=640),
    load=lambda weights, device: SelectiveSearch(),
)
