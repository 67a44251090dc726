"""Weight-free proposals: graph-based segmentation of scikit-image at several scales.

Works on any photo without training. Each scale gives a partition of the image; the proposals are
the regions of all scales, largest first. Dimension key: Q proposals, H W image, h w mask grid.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb
from torch.nn.functional import avg_pool2d

from pipeline.models import Proposals, ProposerCard, ProposerEntry
from pipeline.resize import padded_size
from schemas.errors import ModelError

_STRIDE: Final = 4  # of the mask grid, the same as a MaskFormer's
_DIVISOR: Final = 32
_SCALES: Final = (100.0, 400.0, 1600.0)  # larger scale, larger regions
_MIN_REGION_FRACTION: Final = 1 / 400
_MAX_PROPOSALS: Final = 100
# A cell is inside to the share that the region covers; the share is kept off 0 and 1 so that its
# logit is finite.
_MARGIN: Final = 0.01


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
        regions_HW = felzenszwalb(image_HW3, scale=scale, sigma=0.8, min_size=min_size)
        masks += [regions_HW == region for region in range(int(regions_HW.max()) + 1)]
    distinct = {mask.tobytes(): mask for mask in masks}  # scales often agree on a region
    largest = sorted(distinct.values(), key=np.count_nonzero, reverse=True)[:_MAX_PROPOSALS]
    padded_height, padded_width = padded_size((height, width), _DIVISOR)
    padded = torch.zeros((len(largest), padded_height, padded_width))
    padded[:, :height, :width] = torch.from_numpy(np.stack(largest).astype(np.float32))
    # Cells that the image's edge cuts are compared with what they can hold, not with a full cell.
    inside = torch.zeros((1, padded_height, padded_width))
    inside[:, :height, :width] = 1.0
    share_Qhw = avg_pool2d(padded, _STRIDE) / avg_pool2d(inside, _STRIDE).clamp_min(1e-6)
    return share_Qhw.clamp(_MARGIN, 1.0 - _MARGIN).logit()


def _describe(weights: str | None) -> ProposerCard:
    if weights is not None:
        raise ModelError(f"proposer felzenszwalb has no weights; proposer_weights is {weights!r}")
    return ProposerCard(
        short_edge=320,
        long_edge=1280,
        divisor=_DIVISOR,
        embedding_dim=None,
        weights_sha256=None,
        licence="BSD-3-Clause (scikit-image)",
    )


FELZENSZWALB: Final = ProposerEntry(
    summary="weight-free: graph-based regions at three scales (scikit-image)",
    describe=_describe,
    load=lambda weights, device: Felzenszwalb(),
)
