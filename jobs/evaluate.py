"""`segmill evaluate`: a dataset against label maps, as seen, unseen and harmonic mean IoU."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.dataset import read_manifest, read_rows
from pipeline.metrics import Confusion, harmonic_iou
from pipeline.segments import decode_label_map
from pipeline.truth import Truths, read_label_map
from schemas.annotation import LABELLED
from schemas.config import EvaluateConfig
from schemas.errors import SettingsError


@dataclass(frozen=True)
class EvaluateResult:
    """Fractions; seen, unseen and hIoU are None where the vocabulary has no seen flags."""

    images: int  # labelled images that have a truth
    without_truth: int
    quarantined: int
    miou: float
    pixel_accuracy: float
    seen_miou: float | None
    unseen_miou: float | None
    hiou: float | None
    class_iou: Mapping[str, float]  # classes that occur in the truth


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Compare every labelled image with its truth: the PNG of the same file stem.

    Raises SettingsError when no image has a truth, when sizes differ, or when a truth holds an
    index outside the vocabulary.
    """
    manifest = read_manifest(config.dataset, config.version)
    truths = Truths.find(config.truth)
    vocabulary = manifest.vocabulary
    total = Confusion.zero(len(vocabulary))
    images = without_truth = 0
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
                total += Confusion.of(predicted, read_label_map(truth_path), len(vocabulary))
            except ValueError as error:
                raise SettingsError(f"truth {truth_path}: {error}") from None
            images += 1
    if not images:
        raise SettingsError(f"no labelled image of {config.dataset} has a truth in {config.truth}")
    return _result(
        total,
        vocabulary.names,
        vocabulary.seen,
        (images, without_truth, manifest.counts.quarantined),
    )


def _result(
    total: Confusion,
    names: tuple[str, ...],
    seen: tuple[bool, ...] | None,
    accounted: tuple[int, int, int],
) -> EvaluateResult:
    seen_miou = unseen_miou = hiou = None
    if seen is not None:
        seen_miou = total.miou(seen)
        unseen_miou = total.miou([not flag for flag in seen])
        hiou = harmonic_iou(seen_miou, unseen_miou)
    images, without_truth, quarantined = accounted
    return EvaluateResult(
        images=images,
        without_truth=without_truth,
        quarantined=quarantined,
        miou=total.miou(),
        pixel_accuracy=total.pixel_accuracy(),
        seen_miou=seen_miou,
        unseen_miou=unseen_miou,
        hiou=hiou,
        class_iou={
            name: float(iou)
            for name, iou in zip(names, total.iou(), strict=True)
            if not np.isnan(iou)
        },
    )
