"""What two results must agree in to be compared: the constants of measuring, and their hash."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from pipeline.evaluation.calibration import NUM_BINS
from pipeline.evaluation.outlines import SHARE_OF_DIAGONAL
from pipeline.evaluation.recall import BUDGETS, IOU_THRESHOLDS
from pipeline.evaluation.truth_segments import MIN_PIXELS, TruthFormat
from pipeline.metrics import BOUNDARY_SHARE_OF_DIAGONAL, Protocol
from schemas.vocabulary import Vocabulary

# Raise this whenever the same labels and truths would give other figures.
METRICS_VERSION: Final = 1


def describe_protocol(
    protocol: Protocol, truth_format: TruthFormat, ignore: int, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Return all that decides the figures apart from labels and truths, as plain values."""
    return {
        "metrics_version": METRICS_VERSION,
        "means_over_classes": protocol,
        "truth_format": truth_format,
        "ignored_truth": ignore if truth_format == "classes" else 0,
        "boundary_iou_share_of_diagonal": BOUNDARY_SHARE_OF_DIAGONAL,
        "outline_tolerance_share_of_diagonal": SHARE_OF_DIAGONAL,
        "outline_matching": "distance",
        "score_bins": NUM_BINS,
        "recall_iou_thresholds": list(IOU_THRESHOLDS),
        "recall_budgets": list(BUDGETS),
        "recall_min_segment_pixels": MIN_PIXELS,
        "classes": list(vocabulary.names),
        "seen": None if vocabulary.seen is None else list(vocabulary.seen),
    }


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a described protocol, in hexadecimal."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
