"""Intake: from units of work (planner.UNITS) to the tables that the first stage takes.

A unit names one row group of a file of the dataset: of the list of images to fetch, or of stored
embeddings of which something is used again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.meter import timed
from pipeline.parts import read_row_group
from pipeline.stages.fetch import FETCH, FetchDecode
from pipeline.stages.rows import is_quarantined, rows_of, slices
from schemas.annotation import (
    DECODED,
    EMBEDDED,
    INVENTORY,
    PROPOSALS,
    PROPOSED,
    conform,
    table_from_rows,
)

_RECALLED_AT_ONCE = 64  # labelled again without any model: more at once save nothing


@dataclass(frozen=True)
class FetchImages:
    """Units of INVENTORY rows -> DECODED."""

    name: ClassVar[str] = "decode"
    steps: ClassVar[tuple[str, ...]] = (FETCH, "decode")
    schema: ClassVar[pa.Schema] = DECODED

    dataset: str
    fetch: FetchDecode

    def __call__(self, unit: dict[str, Any], /) -> Iterator[pa.Table]:
        """Yield the decoded images of a unit."""
        with timed(FETCH):
            listed = _rows_of(self.dataset, unit)
        signatures = unit["signatures"] or [None] * len(listed)
        listed = listed.append_column("signature", pa.array(signatures, pa.string()))
        yield from self.fetch.each(listed.select(INVENTORY.names))


@dataclass(frozen=True)
class ReuseProposals:
    """Units of EMBEDDINGS rows -> PROPOSED: pixels are fetched again, proposals are not made."""

    name: ClassVar[str] = "decode"
    steps: ClassVar[tuple[str, ...]] = (FETCH, "decode")
    schema: ClassVar[pa.Schema] = PROPOSED

    dataset: str
    fetch: FetchDecode

    def __call__(self, unit: dict[str, Any], /) -> Iterator[pa.Table]:
        """Yield the images of a unit with their stored proposals."""
        with timed(FETCH):
            kept = _rows_of(self.dataset, unit)
        listed = kept.select(["image_id", "uri", "etag"]).to_pylist()
        signed = dict(zip(unit["image_ids"] or (), unit["signatures"] or (), strict=False))
        for row in listed:
            row["signature"] = signed.get(row["image_id"])
        start = 0
        for decoded in self.fetch.each(table_from_rows(listed, INVENTORY)):
            stored = kept.slice(start, len(decoded))
            start += len(decoded)
            proposals = rows_of(stored.select([field.name for field in PROPOSALS]))
            rows = [
                {**row, "n_proposals": 0} if is_quarantined(row) else {**row, **found}
                for row, found in zip(rows_of(decoded), proposals, strict=True)
            ]
            yield table_from_rows(rows, PROPOSED)


@dataclass(frozen=True)
class Recall:
    """Units of EMBEDDINGS rows -> EMBEDDED: no image is read."""

    name: ClassVar[str] = "recall"
    steps: ClassVar[tuple[str, ...]] = ("recall",)
    schema: ClassVar[pa.Schema] = EMBEDDED

    dataset: str

    def __call__(self, unit: dict[str, Any], /) -> Iterator[pa.Table]:
        """Yield the stored rows of a unit."""
        stored = conform(_rows_of(self.dataset, unit).select(EMBEDDED.names), EMBEDDED)
        yield from slices(stored, _RECALLED_AT_ONCE)


def _rows_of(dataset: str, unit: dict[str, Any]) -> pa.Table:
    table = read_row_group(dataset, unit["path"], unit["row_group"])
    if unit["image_ids"] is None:
        return table
    return table.filter(pc.is_in(table["image_id"], pa.array(unit["image_ids"])))
