"""The result of an evaluation: figures made from the sums, and the document that is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

import numpy as np

from pipeline.evaluation.figures import (
    calibration_figures,
    class_table,
    confusion_cells,
    outline_figures,
    plain,
)
from pipeline.evaluation.labels import LabelTotal
from pipeline.evaluation.outlines import OutlineCounts
from pipeline.evaluation.protocol import protocol_hash
from pipeline.evaluation.recall import BUDGETS, IOU_THRESHOLDS, ProposalRecall
from pipeline.metrics import BoundaryCounts, Confusion, Protocol, harmonic_iou
from schemas.vocabulary import Vocabulary

MAX_CELLS: Final = 50_000  # of the confusion matrix in the document, the largest


@dataclass(frozen=True)
class MeanIoUs:
    """Mean IoU under one protocol; seen, unseen, hIoU: None where the vocabulary has no flags."""

    miou: float
    seen_miou: float | None
    unseen_miou: float | None
    hiou: float | None
    boundary_miou: float


@dataclass(frozen=True, eq=False)
class ProposalFigures:
    """What the kept proposals gave; the oracle's figures are None where truths have no classes."""

    recall: ProposalRecall
    outlines: OutlineCounts
    oracle: Confusion | None
    oracle_means: Mapping[Protocol, MeanIoUs] | None


@dataclass(frozen=True, eq=False)
class EvaluateResult:
    """All metrics are fractions, and nan where no class or pixel enters them."""

    name: str  # of the dataset or the directory of predictions, without secrets
    version: int | None
    truth: str
    vocabulary: Vocabulary
    images: int  # labelled images that have a truth
    without_truth: int
    truth_files: int
    quarantined: int
    seconds: float
    protocol: Protocol  # the one asked for
    described_protocol: Mapping[str, Any]  # all that decides the figures
    by_protocol: Mapping[Protocol, MeanIoUs]
    total: LabelTotal
    proposals: ProposalFigures | None = None

    @property
    def headline(self) -> MeanIoUs:
        """The mean IoUs under the protocol that was asked for."""
        return self.by_protocol[self.protocol]

    @property
    def has_classes(self) -> bool:
        """Whether the truth has classes; else only outlines and proposals are measured."""
        return bool(self.described_protocol["truth_format"] == "classes")

    @property
    def has_scores(self) -> bool:
        """Whether any pixel was counted with the score of its segment."""
        return bool(self.total.calibration.pixels.any())

    @property
    def confusion(self) -> Confusion:
        """Pixels by predicted and true class."""
        return self.total.confusion

    @property
    def pixel_accuracy(self) -> float:
        """The share of true pixels with their label."""
        return self.confusion.pixel_accuracy()

    @property
    def mean_accuracy(self) -> float:
        """The mean of that share over classes."""
        return self.confusion.mean_accuracy()

    @property
    def frequency_weighted_iou(self) -> float:
        """The mean IoU weighted by the classes' shares of the truth."""
        return self.confusion.frequency_weighted_iou()

    @property
    def class_iou(self) -> dict[str, float]:
        """IoU of the classes that occur in the truth."""
        pairs = zip(self.vocabulary.names, self.confusion.iou(), strict=True)
        return {name: float(iou) for name, iou in pairs if not np.isnan(iou)}

    @property
    def coverage(self) -> float:
        """The share of pixels that carry a label."""
        return self.total.labelled / self.total.pixels if self.total.pixels else math.nan

    def document(self) -> dict[str, Any]:
        """Return every figure as plain values for a JSON file; nan is None there."""
        document: dict[str, Any] = {
            "dataset": self.name,
            "version": self.version,
            "truth": self.truth,
            "protocol_sha256": protocol_hash(self.described_protocol),
            "protocol": self.described_protocol,
            "images": self.images,
            "without_truth": self.without_truth,
            "truth_files": self.truth_files,
            "quarantined": self.quarantined,
            "seconds": round(self.seconds, 2),
            "coverage": self.coverage,
            "outlines": outline_figures(self.total.outlines)[0],
        }
        if self.has_classes:
            document |= {
                "by_protocol": {name: asdict(means) for name, means in self.by_protocol.items()},
                "pixel_accuracy": self.pixel_accuracy,
                "mean_accuracy": self.mean_accuracy,
                "frequency_weighted_iou": self.frequency_weighted_iou,
                "classes": class_table(self.vocabulary, self.total),
                "confusion": confusion_cells(self.confusion, MAX_CELLS),
            }
        if self.has_scores:
            document["calibration"] = calibration_figures(self.total.calibration)
        if self.proposals is not None:
            document["proposals"] = _proposal_figures(self.proposals)
        written: dict[str, Any] = plain(document)
        return written


def mean_ious(
    confusion: Confusion, boundary: BoundaryCounts, seen: Sequence[bool] | None
) -> dict[Protocol, MeanIoUs]:
    """Return the mean IoUs under every protocol."""
    protocols: tuple[Protocol, ...] = get_args(Protocol)
    means = {}
    for protocol in protocols:
        seen_miou = unseen_miou = hiou = None
        if seen is not None:
            seen_miou = confusion.miou(seen, protocol)
            unseen_miou = confusion.miou([not flag for flag in seen], protocol)
            hiou = harmonic_iou(seen_miou, unseen_miou)
        means[protocol] = MeanIoUs(
            confusion.miou(protocol=protocol),
            seen_miou,
            unseen_miou,
            hiou,
            boundary.miou(protocol=protocol),
        )
    return means


def _proposal_figures(figures: ProposalFigures) -> dict[str, Any]:
    recall = figures.recall
    document: dict[str, Any] = {
        "images": recall.images,
        "proposals": recall.proposals,
        "segments": recall.segments,
        "iou_thresholds": list(IOU_THRESHOLDS),
        "budgets": [*BUDGETS, "all"],
        "recall": recall.recall().tolist(),
        "average_recall": recall.average_recall().tolist(),
        "mean_best_iou": recall.mean_best_iou().tolist(),
        "outlines": outline_figures(figures.outlines),
    }
    if figures.oracle is not None and figures.oracle_means is not None:
        document["oracle"] = {
            "by_protocol": {name: asdict(means) for name, means in figures.oracle_means.items()},
            "pixel_accuracy": figures.oracle.pixel_accuracy(),
            "mean_accuracy": figures.oracle.mean_accuracy(),
        }
    return document
