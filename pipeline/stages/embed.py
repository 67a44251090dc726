"""Embed: CLIP's vectors of every proposal (GPU pool B), all that a vocabulary is compared with.

Dimension key: Q proposals, V valid proposals, D embedding, H W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.masks import Precision
from pipeline.models import RegionEmbedder, find_classifier
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.device import fetch, pick_device, send
from pipeline.stages.finite import check_finite
from pipeline.stages.rows import Row, image_of, isolate_live, rows_of
from pipeline.stages.soft_masks import kept_on_gpu, masks_of
from schemas.annotation import EMBEDDED, table_from_rows


@dataclass(frozen=True)
class Embed:
    """PROPOSED -> EMBEDDED: every valid proposal's CLIP vector; the pixels are dropped."""

    name: ClassVar[str] = "embed"
    schema: ClassVar[pa.Schema] = EMBEDDED

    classifier: str
    clip: ClipSource
    regions: Any  # how it is shown regions: CropSettings or WholeImageSettings
    crop_batch: int | None  # None: what suits the device and the model
    asks_clip: bool  # off: the labels come from other scores, and no CLIP is loaded
    divisor: int
    precision: Precision

    @cached_property
    def embedder(self) -> RegionEmbedder:
        """The region classifier with its CLIP, loaded at first use."""
        clip = Clip.load(self.clip, pick_device())
        return find_classifier(self.classifier).load(clip, self.regions, self.crop_batch)

    def warm_up(self) -> None:
        """Load CLIP, where it is asked."""
        if self.asks_clip:
            _ = self.embedder

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return the embedded rows; images share CLIP's batches."""
        return table_from_rows(self.on_rows(rows_of(images)), EMBEDDED)

    def on_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows of which those of EMBEDDED are made, see `__call__`."""
        absent = dict.fromkeys(EMBEDDED.names)
        return [
            {**absent, **{name: value for name, value in row.items() if name != "image"}}
            for row in isolate_live(self._embed, rows, self.name)
        ]

    @torch.inference_mode()
    def _embed(self, rows: Sequence[Row]) -> list[Row]:
        if not self.asks_clip:
            return list(rows)
        rows = [kept_on_gpu(row, self.precision, self.divisor) for row in rows]
        found = self.embedder.embed(
            (_pixels(row), masks_of(row, self.precision, self.divisor)) for row in rows
        )
        valid = _fetched([regions.valid_Q for regions in found])
        embeds = _fetched([regions.clip_embeds_VD.float() for regions in found])
        check_finite("CLIP's vectors", map(torch.from_numpy, embeds))
        return [
            {**row, "valid": one.tobytes(), "clip_embeds": vectors.tobytes()}
            for row, one, vectors in zip(rows, valid, embeds, strict=True)
        ]


def _fetched(parts: list[Tensor]) -> list[NDArray[Any]]:
    """Return tensors in the memory of the host; a GPU is waited for once."""
    # An image without regions has vectors of no length.
    whole = fetch(torch.cat([part for part in parts if len(part)] or parts))
    return np.split(whole, np.cumsum([len(part) for part in parts])[:-1])


def _pixels(row: Row) -> Tensor:
    return send(image_of(row), pick_device()).permute(2, 0, 1)
