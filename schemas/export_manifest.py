"""What an export writes about itself: a record of each shard, and `export.json` at the end."""

from collections import Counter
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

EXPORT_LAYOUT: Final = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitCounts(_Record):
    """The images of one split; K classes of the export."""

    images: int
    segments: int
    ignored_pixels: int
    class_pixels: tuple[int, ...]  # (K,)
    class_images: tuple[int, ...]  # (K,) images that show the class

    def __add__(self, other: "SplitCounts") -> "SplitCounts":
        return SplitCounts(
            images=self.images + other.images,
            segments=self.segments + other.segments,
            ignored_pixels=self.ignored_pixels + other.ignored_pixels,
            class_pixels=_sums(self.class_pixels, other.class_pixels),
            class_images=_sums(self.class_images, other.class_images),
        )


class ExportCounts(_Record):
    """What some shards hold; counts add up."""

    splits: dict[str, SplitCounts] = {}
    dropped: dict[str, int] = {}  # segments that became ignored pixels, by reason
    left_out: dict[str, int] = {}  # images that could not be had, by reason
    quarantined: int = 0  # rows without labels

    @property
    def images(self) -> int:
        """Images in all splits."""
        return sum(split.images for split in self.splits.values())

    def __add__(self, other: "ExportCounts") -> "ExportCounts":
        splits = dict(self.splits)
        for name, counts in other.splits.items():
            splits[name] = splits[name] + counts if name in splits else counts
        return ExportCounts(
            splits=dict(sorted(splits.items())),
            dropped=_totals(self.dropped, other.dropped),
            left_out=_totals(self.left_out, other.left_out),
            quarantined=self.quarantined + other.quarantined,
        )


class ExportManifest(_Record):
    """`export.json`: written last, so that an export without it is not whole."""

    layout: int = EXPORT_LAYOUT
    format: str
    dataset: str
    version: int
    run_id: str
    created: datetime
    fingerprint: str  # of the version and of every setting that decides the files
    classes: tuple[str, ...]
    ignore: int
    settings: dict[str, Any]
    counts: ExportCounts


def _sums(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one + other for one, other in zip(first, second, strict=True))


def _totals(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return dict(sorted((Counter(first) + Counter(second)).items()))
