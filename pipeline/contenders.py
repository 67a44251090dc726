"""Which classes can be first or second anywhere in some rows of a label map.

A pixel's class score is S_k = sum over q of F_qk * M_q. F is not negative, and M, interpolated,
lies between the least and the greatest value of the nodes around. Within a block of nodes S_k is
therefore at least F_k * least and at most F_k * greatest, and a class that stays below two others
at their least is neither a pixel's label nor the rival that its margin is measured against.
Masks are flat but for their outlines, so that few classes remain; products with all others are
never computed.

Dimension key: Q proposals, K class names, C those that remain, h w grid of mask logits, B blocks of
its columns.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from pipeline.masks import SoftMasks

_COLUMNS: Final = 8  # of nodes in a block
_ROUNDING: Final = 1e-4  # far more than the relative error of the sums


@dataclass(frozen=True, eq=False)
class Contenders:
    """The bounds of an image's class scores, block by block."""

    class_scores_QK: Tensor
    masks: SoftMasks
    columns_BN: Tensor  # of the nodes that a pixel of a block can lie between

    @classmethod
    def of(cls, class_scores_QK: Tensor, masks: SoftMasks) -> Self:
        """Cut the columns that the image reaches into blocks."""
        device = class_scores_QK.device
        reached = masks.reached_columns()
        # A pixel of the original mixes two neighbours of the resized image, each between two nodes:
        # three nodes in a row, or more of a grid that is finer than the image. The second of them
        # is the block's.
        in_a_row = 2 + math.ceil(masks.logits_Qhw.shape[2] / masks.padded[1])
        starts_B1 = torch.arange(-1, reached, _COLUMNS, device=device)[:, None]
        columns_BN = starts_B1 + torch.arange(_COLUMNS + in_a_row - 1, device=device)
        return cls(class_scores_QK, masks, columns_BN.clamp(0, reached - 1))

    def among(self, rows: slice) -> Tensor:
        """Return the classes (C,), ascending, that contend where some rows of the masks decide."""
        nodes_hwQ = self.masks.nodes(rows)
        least_BQ = self._blocks(nodes_hwQ.amin(dim=0)).amin(dim=1).sigmoid()
        greatest_BQ = self._blocks(nodes_hwQ.amax(dim=0)).amax(dim=1).sigmoid()
        least_BK = least_BQ @ self.class_scores_QK
        greatest_BK = greatest_BQ @ self.class_scores_QK
        second_B1 = least_BK.topk(2, dim=1).values[:, 1:]
        contends_BK = greatest_BK >= second_B1 * (1 - _ROUNDING)
        return contends_BK.any(dim=0).nonzero()[:, 0]

    def _blocks(self, values_wQ: Tensor) -> Tensor:
        return values_wQ.index_select(0, self.columns_BN.flatten()).view(*self.columns_BN.shape, -1)
