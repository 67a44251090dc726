"""What an export format is: how it writes a shard, and what it writes once all shards are done."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from schemas.export_manifest import ExportCounts


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    `write` takes the images of one shard, one at a time in memory; what it writes depends on them
    alone, so that a shard cut short is simply written again. `finish` may read the shards' lines.
    """

    write: Callable[[Shard, Iterable[ExportImage]], None]
    finish: Callable[[Export, ExportCounts], None]
    holds_images: bool = False  # inside its own files, instead of image files beside them
