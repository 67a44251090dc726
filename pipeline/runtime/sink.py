"""Where the rows of a flow end: Parquet parts of the dataset."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data import Datasink
from ray.data.datasource.datasink import WriteResult

from pipeline.meter import timed
from pipeline.parts import write_part
from pipeline.runtime.board import WRITE, reporting
from schemas.manifest import Part


class DatasetSink(Datasink):  # type: ignore[misc]  # Ray ships no types
    """Writes each bundle of rows as one part of the dataset and collects the records."""

    def __init__(self, dataset: str, run_id: str, rows_per_part: int, board: Any) -> None:
        self._dataset = dataset
        self._run_id = run_id
        self._rows_per_part = rows_per_part
        self._board = board
        self.parts: list[Part] = []

    @property
    def min_rows_per_write(self) -> int:
        """Rows that Ray collects before it calls `write`."""
        return self._rows_per_part

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> list[Part]:
        """Write a bundle of rows."""
        tables = [block for block in blocks if block.num_rows]
        if not tables:
            return []
        rows = pa.concat_tables(tables)
        parts = []
        # A bundle may be larger than asked for: a whole block more.
        for start in range(0, len(rows), 2 * self._rows_per_part):
            share = rows.slice(start, 2 * self._rows_per_part)
            with reporting(self._board), timed(WRITE) as section:
                part = write_part(self._dataset, self._run_id, share)
                section.count(len(share), part.size_bytes)
            self._board.add.remote(section.spent, part.images.quarantined)
            parts.append(part)
        return parts

    def on_write_complete(self, write_result: WriteResult[list[Part]]) -> None:
        """Collect what all writes returned."""
        self.parts = [part for parts in write_result.write_returns for part in parts]
