"""Propose: class-agnostic masks for every image (GPU pool A).

What travels on to the classifier is the resized image and the mask logits at stride 4 in
`mask_precision`; how the precisions agree is measured by `tests/bench/mask_precision.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pyarrow as pa
from torch import Tensor

from pipeline.masks import Precision, pack_logits
from pipeline.models import Lookup, PixelEmbedder, Proposer, find_proposer
from pipeline.models.device import pick_device
from pipeline.pixels import pack_pixels
from pipeline.resize import Size, padded_size
from pipeline.stages.rows import Row, image_of, is_quarantined, isolate
from schemas.annotation import PROPOSED, table_from_rows


@dataclass(frozen=True)
class Propose:
    """DECODED -> PROPOSED: mask logits and query embeddings of every image."""

    name: ClassVar[str] = "propose"
    schema: ClassVar[pa.Schema] = PROPOSED

    proposer: str
    weights: str | None
    divisor: int
    precision: Precision

    @cached_property
    def model(self) -> Proposer | Lookup | PixelEmbedder:
        """The proposer, loaded at first use."""
        return find_proposer(self.proposer).load(self.weights, pick_device())

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return the proposals; images of one padded size share a forward pass."""
        rows = images.to_pylist()
        by_size: dict[Size, list[int]] = {}
        for index, row in enumerate(rows):
            if is_quarantined(row):
                rows[index] = {**row, "n_proposals": 0}
            else:
                size = padded_size((row["image_height"], row["image_width"]), self.divisor)
                by_size.setdefault(size, []).append(index)
        for indices in by_size.values():
            results = isolate(self._propose, [rows[index] for index in indices], self.name)
            for index, result in zip(indices, results, strict=True):
                rows[index] = {"n_proposals": 0, **result}
        return table_from_rows(rows, PROPOSED)

    def _propose(self, rows: Sequence[Row]) -> list[Row]:
        proposed = []
        model = self.model
        if isinstance(model, PixelEmbedder):
            embeds = model.embed_pixels([image_of(row) for row in rows])
            return [self._with_pixels(*pair) for pair in zip(rows, embeds, strict=True)]
        if isinstance(model, Lookup):
            found_per_image = [
                model.look_up(
                    row["uri"],
                    (row["height"], row["width"]),
                    (row["image_height"], row["image_width"]),
                )
                for row in rows
            ]
        else:
            found_per_image = model.propose([image_of(row) for row in rows])
        for row, found in zip(rows, found_per_image, strict=True):
            packed = pack_logits(found.mask_logits_Qhw, self.precision)
            proposed.append(
                {
                    **row,
                    "mask_logits": packed.tobytes(),
                    "n_proposals": packed.shape[0],
                    "mask_height": packed.shape[1],
                    "mask_width": packed.shape[2],
                    "query_embeds": _to_bytes(found.query_embeds_QD),
                    "void_logits": _to_bytes(found.void_logits_Q),
                }
            )
        return proposed

    def _with_pixels(self, row: Row, embeds_Dhw: Tensor) -> Row:
        packed = pack_pixels(embeds_Dhw, self.precision)
        grid = {"mask_height": packed.shape[1], "mask_width": packed.shape[2]}
        return {**row, **grid, "pixel_embeds": packed.tobytes()}


def _to_bytes(values: Tensor | None) -> bytes | None:
    return None if values is None else values.detach().float().cpu().numpy().tobytes()
