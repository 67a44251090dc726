"""Stages that do nothing: what is left of a run is the engine."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from pipeline.fingerprints import Fingerprints
from schemas.annotation import ANNOTATED, MODEL, PROPOSED, table_from_rows


@dataclass(frozen=True)
class NullPropose:
    """DECODED -> PROPOSED: no proposals, and the pixels are dropped."""

    name: ClassVar[str] = "propose"
    schema: ClassVar[pa.Schema] = PROPOSED

    def warm_up(self) -> None:
        pass

    def __call__(self, images: pa.Table, /) -> pa.Table:
        rows = images.drop_columns(["image"]).to_pylist()
        return table_from_rows([{**row, "n_proposals": 0} for row in rows], PROPOSED)


@dataclass(frozen=True)
class NullClassify:
    """PROPOSED -> ANNOTATED: no segments."""

    name: ClassVar[str] = "classify"
    schema: ClassVar[pa.Schema] = ANNOTATED

    fingerprints: Fingerprints
    run_id: str

    def warm_up(self) -> None:
        pass

    def __call__(self, images: pa.Table, /) -> pa.Table:
        own = {
            "segments": [],
            "fingerprint": self.fingerprints.label,
            "run_id": self.run_id,
            "annotator": MODEL,
        }
        names = [name for name in ANNOTATED.names if name in images.column_names]
        rows = images.select(names).to_pylist()
        return table_from_rows([{**row, **own} for row in rows], ANNOTATED)
