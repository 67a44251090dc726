"""What `segmill evaluate` prints."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json, rounded, rounded_all

if TYPE_CHECKING:
    from pipeline.evaluation.result import EvaluateResult, ProposalFigures
    from pipeline.metrics import Protocol


def show_evaluate(result: "EvaluateResult", console: Console) -> int:
    """Print the figures, the protocol that was asked for first."""
    figures: dict[str, Any] = {}
    if result.has_classes:
        figures = _show_classes(result, console)
    outlines = result.total.outlines
    figures["outline_f"] = rounded(outlines.f_measure()[0])
    console.print(
        f"outlines: precision {outlines.precision()[0]:.3f}, recall {outlines.recall()[0]:.3f}, "
        f"F {outlines.f_measure()[0]:.3f}",
        highlight=False,
    )
    if result.has_scores:
        error = result.total.calibration.expected_error()
        figures["expected_calibration_error"] = rounded(error)
        console.print(f"expected calibration error {error:.3f}", highlight=False)
    if result.proposals is not None:
        figures["proposals"] = _show_proposals(result.proposals, result.protocol, console)
    print_json(
        {
            "images": result.images,
            "without_truth": result.without_truth,
            "quarantined": result.quarantined,
            "protocol": result.protocol,
            **figures,
        }
    )
    return 0


def _show_classes(result: "EvaluateResult", console: Console) -> dict[str, Any]:
    protocols = sorted(result.by_protocol, key=lambda name: name != result.protocol)
    table = Table(title=f"{result.images} images", title_justify="left")
    table.add_column("mean over classes")
    for protocol in protocols:
        table.add_column(protocol, justify="right")
    rows = {
        "seen mIoU": "seen_miou",
        "unseen mIoU": "unseen_miou",
        "hIoU": "hiou",
        "mIoU": "miou",
        "boundary mIoU": "boundary_miou",
    }
    for title, name in rows.items():
        values = [getattr(result.by_protocol[protocol], name) for protocol in protocols]
        if None not in values:
            table.add_row(title, *(f"{value:.3f}" for value in values))
    console.print(table)
    console.print(
        f"mean accuracy {result.mean_accuracy:.3f}, pixel accuracy {result.pixel_accuracy:.3f}, "
        f"frequency-weighted IoU {result.frequency_weighted_iou:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    return {
        **rounded_all(asdict(result.headline)),
        "mean_accuracy": rounded(result.mean_accuracy),
        "pixel_accuracy": rounded(result.pixel_accuracy),
        "frequency_weighted_iou": rounded(result.frequency_weighted_iou),
        "by_protocol": {
            protocol: rounded_all(asdict(means)) for protocol, means in result.by_protocol.items()
        },
    }


def _show_proposals(
    proposals: "ProposalFigures", protocol: "Protocol", console: Console
) -> dict[str, Any]:
    recall, outlines = proposals.recall, proposals.outlines
    figures = {
        "average_recall": rounded(recall.average_recall()[-1]),
        "recall_at_50": rounded(recall.recall()[-1, 0]),
        "mean_best_iou": rounded(recall.mean_best_iou()[-1]),
        "best_outline_f": rounded(max(outlines.f_measure())),
    }
    console.print(
        f"{recall.mean_proposals:.1f} proposals an image: average recall "
        f"{recall.average_recall()[-1]:.3f}, recall at IoU 0.5 {recall.recall()[-1, 0]:.3f}, "
        f"mean best IoU {recall.mean_best_iou()[-1]:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    if proposals.oracle_means is not None:
        means = proposals.oracle_means[protocol]
        figures |= {f"oracle_{name}": rounded(value) for name, value in asdict(means).items()}
        console.print(f"oracle labels: mIoU {means.miou:.3f}", highlight=False)
    return figures
