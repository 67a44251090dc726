"""`segmill evaluate`: a dataset against label maps, under the protocols of both lineages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import read_manifest, read_rows
from pipeline.metrics import BoundaryCounts, Confusion, Protocol, harmonic_iou
from pipeline.segments import decode_label_map
from pipeline.truth import Truths, read_label_map
from schemas.annotation import LABELLED
from schemas.config import EvaluateConfig
from schemas.errors import SettingsError


@dataclass(frozen=True)
class MeanIoUs:
    """Mean IoU under one protocol; seen, unseen, hIoU: None where the vocabulary has no flags."""

    miou: float
    seen_miou: float | None
    unseen_miou: float | None
    hiou: float | None
    boundary_miou: float


@dataclass(frozen=True)
class EvaluateResult:
    """All metrics are fractions, and nan where no class or pixel enters them."""

    images: int  # labelled images that have a truth
    without_truth: int
    quarantined: int
    protocol: Protocol  # the one asked for
    by_protocol: Mapping[Protocol, MeanIoUs]
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    class_iou: Mapping[str, float]  # classes that occur in the truth

    @property
    def headline(self) -> MeanIoUs:
        """The mean IoUs under the protocol that was asked for."""
        return self.by_protocol[self.protocol]


@dataclass(frozen=True, eq=False)
class _Total:
    """What images add up to."""

    images: int
    confusion: Confusion
    boundary: BoundaryCounts

    @classmethod
    def zero(cls, num_classes: int) -> "_Total":
        return cls(0, Confusion.zero(num_classes), BoundaryCounts.zero(num_classes))

    @classmethod
    def of(
        cls, predicted_HW: NDArray[np.int32], truth_HW: NDArray[np.int32], num_classes: int
    ) -> "_Total":
        """Count one image; raises ValueError for maps that do not fit."""
        return cls(
            1,
            Confusion.of(predicted_HW, truth_HW, num_classes),
            BoundaryCounts.of(predicted_HW, truth_HW, num_classes),
        )

    def __add__(self, other: "_Total") -> "_Total":
        return _Total(
            self.images + other.images,
            self.confusion + other.confusion,
            self.boundary + other.boundary,
        )

    def means(self, seen: Sequence[bool] | None, protocol: Protocol) -> MeanIoUs:
        """Return the mean IoUs under one protocol."""
        seen_miou = unseen_miou = hiou = None
        if seen is not None:
            seen_miou = self.confusion.miou(seen, protocol)
            unseen_miou = self.confusion.miou([not flag for flag in seen], protocol)
            hiou = harmonic_iou(seen_miou, unseen_miou)
        return MeanIoUs(
            self.confusion.miou(protocol=protocol),
            seen_miou,
            unseen_miou,
            hiou,
            self.boundary.miou(protocol=protocol),
        )


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Compare every labelled image with its truth: the PNG of the same file stem.

    Raises SettingsError when no image has a truth, when sizes differ, or when a truth holds an
    index outside the vocabulary.
    """
    manifest = read_manifest(config.dataset, config.version)
    truths = Truths.find(config.truth)
    vocabulary = manifest.vocabulary
    total = _Total.zero(len(vocabulary))
    without_truth = 0
    columns = ["uri", "status", "height", "width", "segments"]
    for table in read_rows(config.dataset, manifest, columns):
        for row in table.to_pylist():
            if row["status"] != LABELLED:
                continue
            truth_path = truths.of(row["uri"])
            if truth_path is None:
                without_truth += 1
                continue
            predicted = decode_label_map(row["segments"], (row["height"], row["width"]))
            try:
                total += _Total.of(predicted, read_label_map(truth_path), len(vocabulary))
            except ValueError as error:
                raise SettingsError(f"truth {truth_path}: {error}") from None
    if not total.images:
        raise SettingsError(f"no labelled image of {config.dataset} has a truth in {config.truth}")
    protocols: tuple[Protocol, ...] = get_args(Protocol)
    return EvaluateResult(
        images=total.images,
        without_truth=without_truth,
        quarantined=manifest.counts.quarantined,
        protocol=config.protocol,
        by_protocol={name: total.means(vocabulary.seen, name) for name in protocols},
        pixel_accuracy=total.confusion.pixel_accuracy(),
        mean_accuracy=total.confusion.mean_accuracy(),
        frequency_weighted_iou=total.confusion.frequency_weighted_iou(),
        class_iou={
            name: float(iou)
            for name, iou in zip(vocabulary.names, total.confusion.iou(), strict=True)
            if not np.isnan(iou)
        },
    )
