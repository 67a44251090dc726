"""Weight-free proposals: graph-based segmentation of scikit-image at several scales.

Works on any photo without training. Each scale gives a partition of the image; the proposals are
the regions of all scales, largest first. Dimension key: H W image.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from pipeline.models import Proposals, ProposerEntry
from pipeline.models.partition import distinct, grid_logits, region_masks, weight_free_card

_SCALES: Final = (100.0, 400.0, 1600.0)  # larger scale, larger regions
_MIN_REGION_FRACTION: Final = 1 / 400
_MAX_PROPOSALS: Final = 100


class Felzenszwalb:
    """Proposals of Felzenszwalb and Huttenlocher (IJCV 2004) at three scales."""

    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return up to 100 regions per image; images may differ in size."""
        return [Proposals(_mask_logits(image)) for image in images]


def _mask_logits(image_HW3: NDArray[np.uint8]) -> torch.Tensor:
    height, width = image_HW3.shape[:2]
    min_size = max(4, int(height * width * _MIN_REGION_FRACTION))
    masks = []
    for scale in _SCALES:
        masks += region_masks(felzenszwalb(image_HW3, scale=scale, sigma=0.8, min_size=min_size))
    # Scales often agree on a region.
    largest = sorted(distinct(masks), key=np.count_nonzero, reverse=True)[:_MAX_PROPOSALS]
    return grid_logits(np.stack(largest))


FELZENSZWALB: Final = ProposerEntry(
    summary="weight-free: graph-based regions at three scales (scikit-image)",
    describe=partial(weight_free_card, "felzenszwalb", short_edge=320),
    load=lambda weights, device: Felzenszwalb(),
)
