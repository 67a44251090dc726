"""Shards of an export: which rows of a version each has, and how one is written."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.exports import find_format
from pipeline.exports.output import INDEX, LEFT_OUT, Export, Shard, record_path
from pipeline.exports.pictures import LeftOut, Pictures, store_picture
from pipeline.exports.records import ExportImage, Picture, file_stem, name_below, split_of
from pipeline.exports.selection import Selection
from pipeline.files import open_parts
from pipeline.packed import is_cell
from pipeline.storage import hide_secrets, open_store, store_errors
from schemas.annotation import LABELLED
from schemas.errors import OutputError
from schemas.export_manifest import ExportCounts, SplitCounts
from schemas.manifest import Manifest

_ROWS: Final = 32  # of which images are in memory together
_BUFFER_BYTES: Final = 2**20
_SORTED_BYTES: Final = 64 * 2**20  # of rows without their images, sorted together
_COLUMNS: Final = (
    "image_id", "uri", "bytes_sha256", "height", "width", "exif_orientation", "status", "segments",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Some consecutive rows of a file."""

    path: str
    start: int
    count: int
    number: int  # of the first one in the whole version


@dataclass(frozen=True)
class ShardSpec:
    """The rows of one shard."""

    number: int
    rows: tuple[Rows, ...]


def plan_shards(manifest: Manifest, images_per_shard: int) -> list[ShardSpec]:
    """Cut the rows of a version, in the order of its files, into shards of equal numbers."""
    shards: list[ShardSpec] = []
    current: list[Rows] = []
    free, number = images_per_shard, 0
    for file in manifest.images:
        start = 0
        while start < file.rows:
            count = min(free, file.rows - start)
            current.append(Rows(file.path, start, count, number))
            start, number, free = start + count, number + count, free - count
            if not free:
                shards.append(ShardSpec(len(shards), tuple(current)))
                current, free = [], images_per_shard
    if current:
        shards.append(ShardSpec(len(shards), tuple(current)))
    return shards


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards; it travels to the processes that do."""

    dataset: str
    source: str
    format: str
    export: Export
    selection: Selection
    pictures: Pictures | None  # None: images are not needed
    link: bool
    val_fraction: float
    split_seed: int

    def __call__(self, shards: Sequence[ShardSpec]) -> ExportCounts:
        """Write shards and then, for each, the record that it is done."""
        total = ExportCounts()
        for spec in shards:
            total += self._write(spec)
        return total

    def _write(self, spec: ShardSpec) -> ExportCounts:
        entry = find_format(self.format)
        shard = Shard(self.export, spec.number)
        tally = _Tally(len(self.export.classes))
        try:
            entry.write(shard, self._images(spec, shard, tally, entry.holds_images))
        except (ValueError, IndexError) as error:
            raise OutputError(
                f"labels of {tally.at_work} are damaged: {error}; `segmill verify` tells more"
            ) from None
        shard.write_pieces()
        counts = tally.counts()
        self.export.write(record_path(spec.number), counts.model_dump_json().encode())
        return counts

    def _images(
        self, spec: ShardSpec, shard: Shard, tally: "_Tally", holds_images: bool
    ) -> Iterator[ExportImage]:
        for row, picture in self._rows(spec, tally):
            if isinstance(picture, LeftOut):
                tally.left_out[picture.code] += 1
                uri = hide_secrets(row["uri"])
                shard.add(LEFT_OUT, {"uri": uri, "code": picture.code, "message": picture.message})
                continue
            tally.at_work = hide_secrets(row["uri"])
            image = self._image(row, picture, tally)
            if picture is not None and not holds_images:
                store_picture(self.export, image, self.link)
            tally.add(image)
            facts = ("image_id", "uri", "split", "name", "file_name")
            shard.add(INDEX, {name: getattr(image, name) for name in facts})
            yield image

    def _rows(
        self, spec: ShardSpec, tally: "_Tally"
    ) -> Iterator[tuple[dict[str, Any], Picture | LeftOut | None]]:
        """Yield the labelled rows, each with its picture."""
        tables = self._labelled(spec, tally)
        if self.pictures is None:
            yield from ((row, None) for table in tables for row in table.to_pylist())
            return
        for table in _in_reading_order(tables):
            rows = table.to_pylist()
            for row, data in zip(rows, self.pictures.fetch(rows), strict=True):
                if isinstance(data, LeftOut):
                    yield row, data
                else:
                    yield row, self.pictures.picture(row, data)

    def _labelled(self, spec: ShardSpec, tally: "_Tally") -> Iterator[pa.Table]:
        """Yield the labelled rows in small tables, each row with its `number` in the version."""
        for rows in spec.rows:
            for first, table in _read(self.dataset, rows):
                numbers = pa.array(range(first, first + len(table)), pa.int64())
                found = table.append_column("number", numbers)
                found = found.filter(pc.equal(found["status"], LABELLED))
                tally.quarantined += len(table) - len(found)
                yield found

    def _image(self, row: dict[str, Any], picture: Picture | None, tally: "_Tally") -> ExportImage:
        size = (row["height"], row["width"])
        segments, dropped = self.selection.apply(row["segments"], size)
        tally.dropped.update(dropped)
        name = file_stem(row["image_id"], row["uri"])
        split = split_of(row["image_id"], self.val_fraction, self.split_seed)
        place = f"images/{split}/{name}{picture.suffix}" if picture else None
        return ExportImage(
            number=row["number"],
            image_id=row["image_id"],
            uri=hide_secrets(row["uri"]),
            size=size,
            name=name,
            file_name=place or hide_secrets(name_below(self.source, row["uri"])),
            split=split,
            segments=segments,
            picture=picture,
        )


def _read(dataset: str, rows: Rows) -> Iterator[tuple[int, pa.Table]]:
    """Yield some rows of a file in small tables, each with the number of its first row."""
    fs, root = open_store(dataset, OutputError)
    end = rows.start + rows.count
    with (
        store_errors(f"read {rows.path} of", dataset, OutputError),
        open_parts(fs, f"{root}/{rows.path}", _BUFFER_BYTES) as stream,
    ):
        # Buffered: else whole columns of a row group, thousands of images, would be in memory.
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        groups, position = _groups(file, rows.start, end)
        # In one thread: Arrow's others keep memory of their own.
        for batch in file.iter_batches(
            _ROWS, row_groups=groups, columns=list(_COLUMNS), use_threads=False
        ):
            first, last = max(position, rows.start), min(position + len(batch), end)
            if first < last:
                table = pa.Table.from_batches([batch.slice(first - position, last - first)])
                yield rows.number + first - rows.start, table
            position += len(batch)
            if position >= end:  # the rest of the row group is of other shards
                break
        # What was read for them is given back, and not kept for what Arrow may read next.
        pa.default_memory_pool().release_unused()


def _in_reading_order(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows again, by uri where their images are in Parquet files.

    They lie in the order of a hash, in which a row group would be read for every image.
    """
    waiting: list[pa.Table] = []
    size = 0
    for table in tables:
        if not any(map(is_cell, table["uri"].to_pylist())):
            yield table
            continue
        waiting.append(table)
        size += table.nbytes
        if size > _SORTED_BYTES:
            yield from _by_uri(waiting)
            waiting, size = [], 0
    yield from _by_uri(waiting)


def _by_uri(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    if tables:
        rows = pa.concat_tables(tables).sort_by("uri")
        yield from (rows.slice(start, _ROWS) for start in range(0, len(rows), _ROWS))


def _groups(file: pq.ParquetFile, start: int, end: int) -> tuple[list[int], int]:
    """Return the row groups that hold some rows, and the number of the first row of these."""
    groups: list[int] = []
    first_row = position = 0
    for group in range(file.num_row_groups):
        after = position + file.metadata.row_group(group).num_rows
        if position < end and after > start:
            if not groups:
                first_row = position
            groups.append(group)
        position = after
    return groups, first_row


@dataclass
class _Tally:
    """Counts while a shard is written."""

    num_classes: int
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    at_work: str = ""  # URI of the image that was given out last

    def add(self, image: ExportImage) -> None:
        """Count an image of the export."""
        pixels_K = np.zeros(self.num_classes, np.int64)
        for segment in image.segments:
            pixels_K[segment.class_index] = segment.area
        height, width = image.size
        one = SplitCounts(
            images=1,
            segments=len(image.segments),
            ignored_pixels=height * width - int(pixels_K.sum()),
            class_pixels=tuple(pixels_K.tolist()),
            class_images=tuple((pixels_K > 0).astype(int).tolist()),
        )
        known = self.splits.get(image.split)
        self.splits[image.split] = one if known is None else known + one

    def counts(self) -> ExportCounts:
        """Return what was counted."""
        return ExportCounts() + ExportCounts(
            splits=self.splits,
            dropped=dict(self.dropped),
            left_out=dict(self.left_out),
            quarantined=self.quarantined,
        )
