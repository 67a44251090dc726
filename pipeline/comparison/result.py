"""The figures of a comparison as plain values, and the limits that they have to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pipeline.comparison.drift import Change, ClassDrift, Flow
from pipeline.pages import shown_uri
from pipeline.storage import hide_secrets
from schemas.diff_config import DiffConfig
from schemas.manifest import Manifest

EXAMPLES: Final = 20  # images that are named of each kind


@dataclass(frozen=True)
class ImageCounts:
    """Where the images of both versions ended."""

    compared: int
    moved: int  # of those, with at least one moved pixel
    replaced: int  # labelled in both, but of another content: not compared
    added: int
    removed: int
    lost: int  # labelled before, now removed or quarantined
    labelled_before: int
    pixels: int  # of the compared ones
    moved_pixels: int  # of those, with another label than before

    @property
    def moved_share(self) -> float | None:
        """Share of the compared pixels with another label; None where none were compared."""
        return self.moved_pixels / self.pixels if self.pixels else None


@dataclass(frozen=True)
class VersionName:
    """Which version a side of the comparison is."""

    dataset: str
    version: int
    run_id: str
    created: str

    @classmethod
    def of(cls, dataset: str, manifest: Manifest) -> "VersionName":
        """Name a version; nothing secret is kept."""
        created = manifest.created.isoformat(timespec="seconds")
        return cls(hide_secrets(dataset), manifest.version, manifest.run_id, created)

    def __str__(self) -> str:
        return f"{self.dataset}@{self.version}"


@dataclass(frozen=True)
class DiffResult:
    """All that is known of two versions; `failures` is what turns the exit code to 1."""

    before: VersionName
    after: VersionName
    settings: Mapping[str, tuple[Any, Any]]  # what decided the labels and differs
    images: ImageCounts
    status_changes: Mapping[tuple[str, str], int]
    examples: Mapping[str, tuple[str, ...]]  # uris of images added, removed, of another status
    classes: tuple[ClassDrift, ...]
    flows: tuple[Flow, ...]
    largest: tuple[Change, ...]
    failures: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return every figure as plain values."""
        return {
            "before": asdict(self.before),
            "after": asdict(self.after),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "images": asdict(self.images),
            "status_changes": [
                {"before": old, "after": new, "images": count}
                for (old, new), count in self.status_changes.items()
            ],
            "examples": {name: list(uris) for name, uris in self.examples.items()},
            "moved": self.images.moved_share,
            "classes": [asdict(drift) for drift in self.classes],
            "flows": [asdict(flow) for flow in self.flows],
            "largest": [
                {"image_id": change.image_id, "uri": shown_uri(change.uri), "moved": change.moved}
                for change in self.largest
            ],
            "failures": list(self.failures),
        }


def changed_settings(before: Manifest, after: Manifest) -> dict[str, tuple[Any, Any]]:
    """Return what decided the labels and differs, vocabulary by name: value before and after."""
    old, new = (
        {**side.models, "vocabulary": list(side.vocabulary.names)} for side in (before, after)
    )
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def failed_limits(
    config: DiffConfig, images: ImageCounts, classes: Sequence[ClassDrift]
) -> list[str]:
    """Return every limit of the settings that the figures do not keep, in words."""
    moved = images.moved_share
    failures = []
    if config.max_moved is not None and moved is not None and moved > config.max_moved:
        failures.append(f"{moved:.4%} of the pixels moved, over max_moved {config.max_moved:.4%}")
    least = 0.0 if config.min_class_iou is None else config.min_class_iou
    for drift in classes:
        share = max(drift.before, drift.after) / images.pixels
        if drift.iou < least and share >= config.min_class_share:
            failures.append(
                f"class {drift.name!r} overlaps with IoU {drift.iou:.4f}, under min_class_iou "
                f"{least} ({drift.before:,} pixels before, {drift.after:,} after)"
            )
    if config.max_lost is not None and images.lost > config.max_lost * images.labelled_before:
        failures.append(
            f"{images.lost} of {images.labelled_before} labelled images are gone or quarantined, "
            f"over max_lost {config.max_lost:.4%}"
        )
    has_limits = config.max_moved is not None or config.min_class_iou is not None
    if has_limits and moved is None:
        failures.append("no image is labelled in both versions: there is nothing to compare")
    return failures
