"""Stages that only hand on masks of full size: what is left of a run is the host's part.

Apart from null_stages.py, which is light: the engine's workers import it.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.models import Proposals
from pipeline.resize import Size, padded_size
from pipeline.stages.propose import Propose
from pipeline.stages.rows import rows_of
from tests.bench.null_stages import NullClassify

DIVISOR, STRIDE, MASKS, DIMENSIONS = 32, 4, 100, 512
_LARGEST = 64 * 2**20


@dataclass
class RandomProposer:
    """As many masks as the paper's network makes, in no time: they are drawn once for each size."""

    _drawn: dict[Size, Proposals] = field(default_factory=dict)

    def propose(self, images: list[NDArray[np.uint8]]) -> list[Proposals]:
        return [self._of(padded_size(image.shape[:2], DIVISOR)) for image in images]

    def _of(self, padded: Size) -> Proposals:
        if padded not in self._drawn:
            grid = (padded[0] // STRIDE, padded[1] // STRIDE)
            embeds = torch.nn.functional.normalize(torch.randn(MASKS, DIMENSIONS), dim=1)
            logits = torch.randn(MASKS, *grid).half()
            self._drawn[padded] = Proposals(logits, embeds, torch.zeros(MASKS))
        return self._drawn[padded]


@dataclass(frozen=True)
class RandomPropose(Propose):
    """The stage with such a proposer; its masks come as float16, as a GPU hands them over."""

    @cached_property
    def model(self) -> Any:
        return RandomProposer()


@dataclass(frozen=True)
class CopyingClassify(NullClassify):
    """PROPOSED -> ANNOTATED: pixels and masks are copied once, as on their way to a GPU."""

    @cached_property
    def _pinned(self) -> NDArray[np.uint8]:
        return np.empty(_LARGEST, np.uint8)

    def __call__(self, images: pa.Table, /) -> pa.Table:
        for row in rows_of(images):
            for name in ("image", "mask_logits"):
                values = np.frombuffer(row[name], np.uint8)
                self._pinned[: len(values)] = values
        return super().__call__(images.drop_columns(["image", "mask_logits"]))
