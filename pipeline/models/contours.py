"""Weight-free proposals: a hierarchy of regions by contour strength, in the spirit of gPb-UCM.

After Arbelaez et al. (TPAMI 2011) with library parts: colour gradients at several scales stand in
for the learned contour detector, the watershed of scikit-image gives the finest regions, and
merging across the weakest contour gives the hierarchy. The proposals are the regions of several
of its levels. Dimension key: H W image, R regions, E pairs of neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_gradient_magnitude
from skimage.color import rgb2lab
from skimage.segmentation import watershed

from pipeline.models import Proposals, ProposerEntry
from pipeline.models.partition import (
    Borders,
    Merge,
    distinct,
    grid_logits,
    merge_greedily,
    owners,
    region_masks,
    weight_free_card,
)

# The contour of a small region counts for less, by this power of its share of the image. Chosen on
# 24 photographs of BSDS500: without it the coarse levels are specks in one large region.
_AREA_POWER: Final = 0.25


@dataclass(frozen=True)
class ContourSettings:
    """Strengths are colour differences in CIELAB: 2 is just visible, black to white is 100."""

    scales: tuple[float, ...] = (1.0, 2.0, 4.0)  # pixels of the resized image
    min_strength: float = 1.0  # contours that are weaker, for the size of the region, are none
    levels: tuple[int, ...] = (2, 4, 8, 16, 32, 64)  # numbers of regions, ascending
    max_proposals: int = 100


@dataclass(frozen=True)
class Contours:
    """Nested proposals; the coarsest level covers the image."""

    settings: ContourSettings = field(default_factory=ContourSettings)

    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return up to 100 regions per image, coarse levels first; images may differ in size."""
        return [Proposals(grid_logits(self._masks(image))) for image in images]

    def _masks(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.bool_]:
        settings = self.settings
        hierarchy = Hierarchy.of(contour_strength(image_HW3, settings.scales))
        masks: list[NDArray[np.bool_]] = []
        for count in settings.levels:
            level = region_masks(hierarchy.cut(count, settings.min_strength))
            masks += sorted(level, key=np.count_nonzero, reverse=True)
        return np.stack(distinct(masks)[: settings.max_proposals])


def contour_strength(image_HW3: NDArray[np.uint8], scales: Sequence[float]) -> NDArray[np.float64]:
    """Return the colour difference across each pixel, (H, W), the mean over scales.

    A straight edge between two colours has, at every scale, the difference of the two.
    """
    lab_HW3 = rgb2lab(image_HW3)
    strength_HW = np.zeros(lab_HW3.shape[:2])
    for scale in scales:
        slopes = [gaussian_gradient_magnitude(lab_HW3[..., c], scale) for c in range(3)]
        # A step of height 1 that is smoothed by a Gaussian has the slope 1 / (scale * sqrt(2 pi)).
        strength_HW += np.linalg.norm(slopes, axis=0) * (scale * np.sqrt(2.0 * np.pi))
    # Rounded, so that flat areas are flat: the watershed would find basins in rounding errors.
    rounded_HW: NDArray[np.float64] = np.round(strength_HW / len(scales), 3)
    return rounded_HW


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """Nested regions: the finest partition, and merges in order of contour strength."""

    finest_HW: NDArray[np.int64]
    merges: list[Merge]

    @classmethod
    def of(cls, strength_HW: NDArray[np.float64]) -> "Hierarchy":
        """Build the hierarchy; a contour is as strong as the mean along the border."""
        # Basins count from 1; a map without any slope has none, and is one region.
        finest_HW = np.maximum(watershed(strength_HW).astype(np.int64) - 1, 0)
        borders = Borders.of(finest_HW, strength_HW)
        regions = _Contoured.of(finest_HW, borders)
        num_finest = int(finest_HW.max()) + 1
        return cls(finest_HW, merge_greedily(regions, num_finest, borders.edges().pairs_E2))

    def cut(self, max_regions: int, min_strength: float) -> NDArray[np.int64]:
        """Return the partition (H, W) of at most `max_regions` regions.

        Contours below `min_strength` are gone whatever the number. The strength at which two
        regions merge is never below that of an earlier merge (ultrametric).
        """
        num_finest = int(self.finest_HW.max()) + 1
        costs = np.array([merge.cost for merge in self.merges])
        weak = int(np.searchsorted(np.maximum.accumulate(costs), min_strength))
        merges = self.merges[: max(weak, num_finest - max_regions)]
        return owners(num_finest, merges)[self.finest_HW]


@dataclass(frozen=True, eq=False)
class _Contoured:
    """Of every region the area, and the strength along its border with each neighbour."""

    areas: list[float]  # shares of the image
    borders: list[dict[int, tuple[float, int]]]  # by neighbour: sum of strengths, length

    @classmethod
    def of(cls, regions_HW: NDArray[np.int64], borders: Borders) -> "_Contoured":
        areas = np.bincount(regions_HW.ravel()) / regions_HW.size
        found = cls(areas.tolist(), [{} for _ in areas])
        edges = borders.edges()
        for (low, high), total, length in zip(
            edges.pairs_E2.tolist(), edges.sums_E.tolist(), edges.lengths_E.tolist(), strict=True
        ):
            found.borders[low][high] = found.borders[high][low] = (total, length)
        return found

    def costs(self, region: int, others: list[int]) -> list[float]:
        """Return the mean strength of each border, less for small regions."""
        costs = []
        for other in others:
            total, length = self.borders[region][other]
            smaller = min(self.areas[region], self.areas[other])
            costs.append(total / length * smaller**_AREA_POWER)
        return costs

    def join(self, first: int, second: int, merged: int) -> None:
        """Add up areas, and borders with a neighbour of both."""
        self.areas.append(self.areas[first] + self.areas[second])
        self.borders.append({})
        for part in (first, second):
            for other, (total, length) in self.borders[part].items():
                if other not in (first, second):
                    sum_so_far, length_so_far = self.borders[other].get(merged, (0.0, 0))
                    border = (sum_so_far + total, length_so_far + length)
                    self.borders[other][merged] = self.borders[merged][other] = border
                    del self.borders[other][part]
            self.borders[part].clear()


CONTOURS: Final = ProposerEntry(
    summary="weight-free: a hierarchy of regions by contour strength (scikit-image)",
    describe=partial(weight_free_card, "contours", short_edge=320),
    load=lambda weights, device: Contours(),
)
