"""Propose: class-agnostic masks for every image (GPU pool A).

What travels on to the classifier is the resized image and the mask logits at stride 4 in
`mask_precision`; how the precisions agree is measured by `tests/bench/mask_precision.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.masks import Precision, pack_logits
from pipeline.models import Lookup, PixelEmbedder, Proposals, Proposer, find_proposer
from pipeline.models.device import PRECISIONS, pick_device
from pipeline.models.passes import images_per_pass, in_passes, proposals_at_once
from pipeline.models.weight_cache import local_copy
from pipeline.pixels import pack_pixels
from pipeline.pruning import PruneSettings, prune
from pipeline.resize import Size, padded_size
from pipeline.stages.finite import check_finite
from pipeline.stages.rows import Row, image_of, isolate_live, quarantine, rows_of
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
    modules: tuple[str, ...] = ()
    pruning: PruneSettings | None = None
    arithmetic: str = "fp32"  # of the network, a key of PRECISIONS

    @cached_property
    def model(self) -> Proposer | Lookup | PixelEmbedder:
        """The proposer, loaded at first use."""
        entry = find_proposer(self.proposer, self.modules)
        model = entry.load(local_copy(self.weights), pick_device())
        if self.arithmetic != "fp32" and entry.lower is not None:
            entry.lower(model, PRECISIONS[self.arithmetic])
        return model

    @cached_property
    def _is_reentrant(self) -> bool:
        says = find_proposer(self.proposer, self.modules).is_reentrant
        return says is not None and says(self.model)

    def warm_up(self) -> None:
        """Load the model."""
        _ = self.model

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return the proposals; images of one padded size share forward passes."""
        rows = isolate_live(self._propose, rows_of(images), self.name, self._padded_size)
        return table_from_rows([{"n_proposals": 0, **row} for row in rows], PROPOSED)

    def _padded_size(self, row: Row) -> Size:
        return padded_size((row["image_height"], row["image_width"]), self.divisor)

    def _propose(self, rows: Sequence[Row]) -> list[Row]:
        model = self.model
        if isinstance(model, Lookup):
            return [self._look_up(model, row) for row in rows]
        size = self._padded_size(rows[0])
        most = images_per_pass(size)
        at_once = proposals_at_once(size, most) if self._is_reentrant else 1
        parts = in_passes(partial(self._passed, model), rows, most, at_once)
        return list(chain.from_iterable(parts))

    def _passed(self, model: Proposer | PixelEmbedder, rows: Sequence[Row]) -> list[Row]:
        images = [image_of(row) for row in rows]
        if isinstance(model, PixelEmbedder):
            with self._in_precision():
                embeds = model.embed_pixels(images)
            check_finite("the proposer's pixel embeddings", embeds)
            return [self._with_pixels(*pair) for pair in zip(rows, embeds, strict=True)]
        with self._in_precision():
            found = model.propose(images)
        results = ((one.mask_logits_Qhw, one.query_embeds_QD, one.void_logits_Q) for one in found)
        check_finite("the proposer's masks and query embeddings", chain.from_iterable(results))
        return [self._packed(*pair) for pair in zip(rows, found, strict=True)]

    def _in_precision(self) -> torch.autocast:
        dtype = PRECISIONS[self.arithmetic]
        return torch.autocast(pick_device(), dtype, enabled=dtype != torch.float32)

    def _look_up(self, model: Lookup, row: Row) -> Row:
        size = (row["height"], row["width"])
        try:
            found = model.look_up(row["uri"], size, (row["image_height"], row["image_width"]))
        except ValueError as error:  # of this image alone, even where all images of a batch fail
            return quarantine(row, self.name, "no_masks", str(error))
        return self._packed(row, found)

    def _packed(self, row: Row, found: Proposals) -> Row:
        if self.pruning is not None:
            size = (row["image_height"], row["image_width"])
            found = prune(found, self.pruning, padded_size(size, self.divisor), size)
        packed = pack_logits(found.mask_logits_Qhw, self.precision)
        return {
            **row,
            "mask_logits": _bytes_of(packed),
            "n_proposals": packed.shape[0],
            "mask_height": packed.shape[1],
            "mask_width": packed.shape[2],
            "query_embeds": _to_bytes(found.query_embeds_QD),
            "void_logits": _to_bytes(found.void_logits_Q),
        }

    def _with_pixels(self, row: Row, embeds_Dhw: Tensor) -> Row:
        packed = pack_pixels(embeds_Dhw, self.precision)
        grid = {"mask_height": packed.shape[1], "mask_width": packed.shape[2]}
        return {**row, **grid, "pixel_embeds": _bytes_of(packed)}


def _bytes_of(values: NDArray[Any]) -> memoryview:
    """Return the memory of an array as it is: megabytes, of which every copy counts."""
    return values.reshape(-1).view(np.uint8).data


def _to_bytes(values: Tensor | None) -> bytes | None:
    return None if values is None else values.detach().float().cpu().numpy().tobytes()
