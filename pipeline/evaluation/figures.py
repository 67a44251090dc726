"""Sums as plain values for a JSON file and for tables."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.evaluation.calibration import Calibration, bin_edges
from pipeline.evaluation.labels import LabelTotal
from pipeline.evaluation.outlines import OutlineCounts
from pipeline.metrics import Confusion
from schemas.vocabulary import Vocabulary


def class_table(vocabulary: Vocabulary, total: LabelTotal) -> list[dict[str, Any]]:
    """Return the figures of every class that occurs in the truth or in a prediction."""
    confusion = total.confusion
    columns = zip(
        vocabulary.classes,
        confusion.iou(),
        confusion.accuracy(),
        total.boundary.iou(),
        confusion.truth,
        confusion.predicted,
        confusion.hits,
        strict=True,
    )
    return [
        {
            "class_index": index,
            "name": entry.name,
            "seen": entry.seen,
            "iou": float(iou),
            "accuracy": float(accuracy),  # recall: the share of the class's pixels that was found
            "precision": int(hits) / int(predicted) if predicted else math.nan,
            "boundary_iou": float(boundary),
            "truth_pixels": int(truth),
            "predicted_pixels": int(predicted),
        }
        for index, (entry, iou, accuracy, boundary, truth, predicted, hits) in enumerate(columns)
        if truth or predicted
    ]


def confusion_cells(confusion: Confusion, most: int) -> dict[str, Any]:
    """Return the nonzero cells of the matrix, the largest first and `most` of them at most.

    Predicted class index K stands for "no label".
    """
    predicted, truth = confusion.counts.nonzero()
    pixels = confusion.counts[predicted, truth]
    order = np.argsort(-pixels, kind="stable")
    chosen = order[:most]
    return {
        "predicted": predicted[chosen].tolist(),
        "truth": truth[chosen].tolist(),
        "pixels": pixels[chosen].tolist(),
        "left_out_cells": len(order) - len(chosen),
        "left_out_pixels": int(pixels[order[most:]].sum()),
    }


def plain(value: Any) -> Any:
    """Return nested values as JSON takes them: fractions to six digits, None for nan."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def calibration_figures(calibration: Calibration) -> dict[str, Any]:
    """Return counts and rates by bin of score."""
    return {
        "expected_calibration_error": calibration.expected_error(),
        "bin_edges": bin_edges().tolist(),
        "pixels": calibration.pixels.tolist(),
        "correct": calibration.correct.tolist(),
        "accuracy": calibration.accuracy().tolist(),
        "mean_score": calibration.mean_scores().tolist(),
        "kept_from_edge": calibration.kept().tolist(),
        "accuracy_from_edge": calibration.accuracy_of_kept().tolist(),
    }


def outline_figures(outlines: OutlineCounts) -> list[dict[str, float]]:
    """Return the rates of each outline."""
    columns = (outlines.precision(), outlines.recall(), outlines.f_measure())
    return [
        dict(zip(("precision", "recall", "f_measure"), map(float, row), strict=True))
        for row in np.stack(columns, axis=1)
    ]
