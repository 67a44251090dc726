"""The page of an evaluation: headline figures, classes, confusions, calibration, proposals."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TextIO

import numpy as np

from pipeline.evaluation.calibration import NUM_BINS, Calibration, bin_edges
from pipeline.evaluation.charts import (
    HEIGHT,
    UNIT,
    UNIT_TICKS,
    WIDTH,
    Chart,
    Scale,
    bar,
    line,
    x_ticks,
    y_ticks,
)
from pipeline.evaluation.figures import class_table
from pipeline.evaluation.heat_map import largest_mistakes, make_heat_map
from pipeline.evaluation.protocol import protocol_hash
from pipeline.evaluation.recall import BUDGETS, IOU_THRESHOLDS
from pipeline.evaluation.result import EvaluateResult, ProposalFigures
from pipeline.pages import write_template
from pipeline.palette import class_colours, hexadecimal

_MEANS: Final = {
    "Seen mIoU": "seen_miou",
    "Unseen mIoU": "unseen_miou",
    "hIoU": "hiou",
    "mIoU": "miou",
    "Boundary mIoU": "boundary_miou",
}
_CURVES: Final = (1, 10, 100)  # budgets that get a curve of their own, besides all proposals
_LISTED_IN_FULL: Final = ("classes", "seen")


@dataclass(frozen=True)
class MeansRow:
    """One mean over classes under every protocol, for the labels and for the oracle's."""

    name: str
    labels: tuple[float | None, ...]
    oracle: tuple[float | None, ...]


def write_evaluation_page(file: TextIO, result: EvaluateResult) -> None:
    """Write the page; it needs no other file."""
    vocabulary = result.vocabulary
    has_classes = result.has_classes
    write_template(
        file,
        "evaluation.html.j2",
        "evaluation.js",
        result=result,
        tiles=list(_tiles(result)),
        protocols=list(result.by_protocol),
        means=_means(result) if has_classes else [],
        classes=_classes(result) if has_classes else [],
        heat_map=make_heat_map(result.confusion, vocabulary) if has_classes else None,
        mistakes=largest_mistakes(result.confusion, vocabulary) if has_classes else [],
        calibration=_calibration(result.total.calibration) if result.has_scores else [],
        proposals=_proposals(result.proposals) if result.proposals else [],
        provenance=_provenance(result),
        chart_size=(WIDTH, HEIGHT),
    )


def _tiles(result: EvaluateResult) -> Iterator[tuple[str, float, str]]:
    """Yield name, fraction and a remark."""
    if result.has_classes:
        for name, attribute in _MEANS.items():
            value = getattr(result.headline, attribute)
            if value is not None:
                yield name, value, ""
        yield "Pixel accuracy", result.pixel_accuracy, f"{result.coverage:.1%} labelled"
        yield "Mean accuracy", result.mean_accuracy, ""
        yield "Weighted IoU", result.frequency_weighted_iou, "by share of the truth"
    outlines = result.total.outlines
    precision, recall = outlines.precision()[0], outlines.recall()[0]
    remark = "" if math.isnan(precision) else f"P {precision:.1%} · R {recall:.1%}"
    yield "Outline F", outlines.f_measure()[0], remark
    if result.has_scores:
        yield "Calibration error", result.total.calibration.expected_error(), "ECE"
    if result.proposals is not None:
        found = result.proposals
        remark = f"{found.recall.mean_proposals:.0f} proposals an image"
        yield "Average recall", found.recall.average_recall()[-1], remark
        if found.oracle_means is not None:
            yield "Oracle mIoU", found.oracle_means[result.protocol].miou, "upper bound"


def _means(result: EvaluateResult) -> list[MeansRow]:
    oracle = result.proposals.oracle_means if result.proposals else None
    rows = []
    for name, attribute in _MEANS.items():
        values = tuple(getattr(means, attribute) for means in result.by_protocol.values())
        if None not in values:
            bound = tuple(getattr(means, attribute) for means in (oracle or {}).values())
            rows.append(MeansRow(name, values, bound))
    return rows


def _classes(result: EvaluateResult) -> list[dict[str, Any]]:
    colours = class_colours(len(result.vocabulary))
    pixels = max(1, int(result.confusion.truth.sum()))
    has_flags = result.vocabulary.seen is not None
    rows = class_table(result.vocabulary, result.total)
    for row in rows:
        row["colour"] = hexadecimal(colours[row["class_index"]])
        row["is_unseen"] = has_flags and not row["seen"]
        row["truth_share"] = row["truth_pixels"] / pixels
    return sorted(rows, key=lambda row: (math.isnan(row["iou"]), -row["iou"]))


def _calibration(calibration: Calibration) -> list[Chart]:
    shares = calibration.pixels / calibration.pixels.sum()
    accuracy, scores = calibration.accuracy(), calibration.mean_scores()
    bars = tuple(
        bar(
            index / NUM_BINS,
            (index + 1) / NUM_BINS,
            float(accuracy[index]),
            0.25 + 0.75 * float(shares[index] / shares.max()) ** 0.5,
            f"score {scores[index]:.2f}: {accuracy[index]:.1%} correct, "
            f"{shares[index]:.1%} of labelled pixels",
        )
        for index in np.flatnonzero(calibration.pixels)
    )
    percents = x_ticks(UNIT, ((value, f"{value:g}") for value, _ in UNIT_TICKS))
    edges = bin_edges().tolist()
    told = "from score {x:.2f}: {y:.1%}"
    lines = (
        line(
            "correct", 0, UNIT, list(zip(edges, calibration.accuracy_of_kept(), strict=True)), told
        ),
        line("kept", 1, UNIT, list(zip(edges, calibration.kept(), strict=True)), told),
    )
    return [
        Chart(
            "Reliability", "score of the segment", "correct pixels", percents, y_ticks(),
            bars=bars, has_diagonal=True,
        ),
        Chart("What a minimum score leaves", "minimum score", "pixels", percents, y_ticks(), lines),
    ]  # fmt: skip


def _proposals(figures: ProposalFigures) -> list[Chart]:
    recall = figures.recall
    by_iou = Scale(0.5, 0.95)
    by_number = Scale(1, max(2.0, recall.mean_proposals), is_log=True)
    # Budgets beyond the mean number hardly differ from all proposals, which stand at the mean.
    useful = [index for index, size in enumerate(BUDGETS) if size < recall.mean_proposals]
    numbers = [*(float(BUDGETS[index]) for index in useful), by_number.high]
    chosen = [*useful, len(BUDGETS)]
    curves = [index for index in useful if BUDGETS[index] in _CURVES] + [len(BUDGETS)]
    names = [*(f"first {size}" for size in BUDGETS), "all proposals"]

    def by_budget(name: str, style: int, values: Any) -> Any:
        pairs = list(zip(numbers, values[chosen].tolist(), strict=True))
        return line(name, style, by_number, pairs, "{x:.0f} proposals, {y:.1%}")

    # The last tick is the mean; one close before it would lie under it.
    told = [number for number in numbers[:-1] if number < 0.8 * numbers[-1]] + numbers[-1:]
    number_ticks = x_ticks(by_number, ((number, f"{number:.0f}") for number in told))
    outlines = figures.outlines
    return [
        Chart(
            "Recall of true segments", "IoU at least", "found",
            x_ticks(by_iou, ((step / 10, f"{step / 10:g}") for step in range(5, 10))), y_ticks(),
            tuple(
                line(
                    names[index], style, by_iou,
                    list(zip(IOU_THRESHOLDS, recall.recall()[index].tolist(), strict=True)),
                    "IoU {x:.2f}, {y:.1%}",
                )
                for style, index in enumerate(curves)
            ),
        ),
        Chart(
            "Recall by number of proposals", "proposals", "mean over segments",
            number_ticks, y_ticks(),
            (
                by_budget("average recall", 0, recall.average_recall()),
                by_budget("best IoU", 1, recall.mean_best_iou()),
            ),
        ),
        Chart(
            "Outlines by number of proposals", "proposals", "outline pixels",
            number_ticks, y_ticks(),
            (
                by_budget("F", 0, outlines.f_measure()),
                by_budget("precision", 1, outlines.precision()),
                by_budget("recall", 2, outlines.recall()),
            ),
        ),
    ]  # fmt: skip


def _provenance(result: EvaluateResult) -> list[tuple[str, str]]:
    described = result.described_protocol
    shown = {name: value for name, value in described.items() if name not in _LISTED_IN_FULL}
    texts = [
        (
            name.replace("_", " "),
            " · ".join(map(str, value)) if isinstance(value, list) else str(value),
        )
        for name, value in shown.items()
    ]
    return [("SHA-256 of the protocol", protocol_hash(described)), *texts]
