"""Units of work: what one task reads and labels, and the lists that they are made from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import write_bytes
from pipeline.parts import RUNS

# A unit is what one task reads and decodes. Between two tasks Ray leaves a core without work for a
# tenth of a second and more, so that a small run has a few units for every core, no more; what a
# machine that goes away has begun is decoded again.
_UNITS: Final = 40
_LEAST_ROWS: Final = 8
_MOST_ROWS: Final = 1024
ROWS_PER_TODO_FILE: Final = 65_536
UNITS: Final = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # of a Parquet file of the dataset
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("image_ids", pa.list_(pa.string())),  # the rows to take; null: all
        # What opens each signed URL, in the order of image_ids or, of all rows, of the row group:
        # secret, so it is in no file.
        pa.field("signatures", pa.list_(pa.string())),
    ]
)


def unit_rows(images: int) -> int:
    """Return how many images of a run make a unit of work."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, images // _UNITS))


@dataclass(frozen=True)
class Units:
    """Units of work, as a table of UNITS, and how many images they hold."""

    table: pa.Table
    images: int


@dataclass(frozen=True)
class Work:
    """What is left to do, by how much of it is stored already."""

    fetch: Units  # INVENTORY rows: to fetch, decode, propose and classify
    reclassify: Units  # EMBEDDINGS rows whose proposals are used again: to fetch and classify
    relabel: Units  # EMBEDDINGS rows of which only the labels are made again

    @property
    def images(self) -> int:
        """How many images are left."""
        return self.fetch.images + self.recalled

    @property
    def recalled(self) -> int:
        """How many of them have stored proposals."""
        return self.reclassify.images + self.relabel.images


Signatures = Callable[[list[str]], list[str | None] | None]  # of images, by image_id


def write_units(
    dataset: str, run_id: str, images: pa.RecordBatchReader, count: int, signatures: Signatures
) -> Units:
    """Write the images to fetch, `count` in all, as files of the dataset; return their units."""
    rows = unit_rows(count)
    units = []
    for number, table in enumerate(_tables_of(images, ROWS_PER_TODO_FILE)):
        path = f"{RUNS}/{run_id}/todo/{number:06d}.parquet"
        buffer = BytesIO()
        pq.write_table(table, buffer, row_group_size=rows)
        write_bytes(dataset, path, buffer.getvalue())
        for group, start in enumerate(range(0, len(table), rows)):
            opened_by = signatures(table["image_id"].slice(start, rows).to_pylist())
            units.append({"path": path, "row_group": group, "signatures": opened_by})
    return Units(pa.Table.from_pylist(units, schema=UNITS), count)


def _tables_of(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """Yield tables of exactly `rows`, the last one smaller, from batches of any size."""
    pending: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        while count + len(batch) >= rows:
            taken = rows - count
            yield pa.Table.from_batches([*pending, batch[:taken]])
            pending, count, batch = [], 0, batch[taken:]
        if len(batch):
            pending.append(batch)
            count += len(batch)
    if pending:
        yield pa.Table.from_batches(pending)
