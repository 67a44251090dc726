"""What the set loss learns from: one mask per class in the picture (spec 3.1).

Dimension key: B images, M masks (padded to the most of one image), H W target grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from pipeline.resize import Size


@dataclass(frozen=True, eq=False)
class Targets:
    """Class positions and masks of every image, all masks on one grid.

    A mask holds 0 and 1, or shares between them. Image b has `counts[b]` masks; the rest of its row
    is padding. M is at least 1, so that a batch without any mask goes the way of all others.
    """

    labels_BM: Tensor
    masks_BMHW: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, labels: Sequence[Tensor], masks: Sequence[Tensor]) -> Targets:
        """Stack class positions (M,) and masks (M, H, W) of every image, padded with zeros."""
        labels_BM = pad_sequence(list(labels), batch_first=True)
        masks_BMHW = pad_sequence(list(masks), batch_first=True)
        counts = tuple(len(row) for row in labels)
        if not any(counts):
            labels_BM, masks_BMHW = pad(labels_BM, (0, 1)), pad(masks_BMHW, (0, 0, 0, 0, 0, 1))
        return cls(labels_BM, masks_BMHW, counts)

    def to(self, device: torch.device) -> Targets:
        """Return the same targets on a device."""
        return Targets(self.labels_BM.to(device), self.masks_BMHW.to(device), self.counts)


def class_masks(positions_HW: Tensor, num_classes: int, padded: Size) -> tuple[Tensor, Tensor]:
    """Return the class positions (M,) of one picture, ascending, and their masks (M, H, W).

    Whatever is no position in 0..`num_classes` - 1 (unseen, void) is part of no mask, like the
    padding at the right and bottom: the losses hold both against every matched query.
    """
    height, width = positions_HW.shape
    present_M = torch.unique(positions_HW).long()
    present_M = present_M[(present_M >= 0) & (present_M < num_classes)]
    masks_MHW = (positions_HW[None] == present_M[:, None, None]).float()
    return present_M, pad(masks_MHW, (0, padded[1] - width, 0, padded[0] - height))
