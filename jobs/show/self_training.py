"""What `segmill train self-training` prints."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json, rounded, rounded_all

if TYPE_CHECKING:
    from jobs.train_self_training import TrainSelfTrainingResult

_ROWS = {"seen mIoU": "seen_miou", "unseen mIoU": "unseen_miou", "hIoU": "hiou", "mIoU": "miou"}


def show_self_training(result: "TrainSelfTrainingResult", console: Console) -> int:
    """Print what the pseudo labels are, and the comparison before and after."""
    summary = result.summary
    for reason, number in summary.skipped.items():
        console.print(f"{number} images were left out: {reason}", highlight=False, markup=False)
    console.print(
        f"{summary.images} images with pseudo labels, {summary.ignored_share:.1%} of their pixels "
        "without a label",
        highlight=False,
    )
    table = Table(title=f"{result.images} images", title_justify="left")
    for name in ("mean over classes", "before", "after", "gain"):
        table.add_column(name, justify="left" if name == "mean over classes" else "right")
    for title, name in _ROWS.items():
        before, after = getattr(result.before, name), getattr(result.after, name)
        if None not in (before, after):
            table.add_row(title, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    console.print(table)
    console.print(
        f"annotate with it: --proposer-weights {result.proposer}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    print_json(
        {
            "proposer": str(result.proposer),
            "pseudo_labels": str(result.pseudo),
            "images": summary.images,
            "skipped": dict(summary.skipped),
            "pseudo_images": dict(summary.pseudo_images),
            "capped": dict(summary.capped),
            "ignored_share": rounded(summary.ignored_share),
            "compared_on": result.images,
            "before": rounded_all(asdict(result.before)),
            "after": rounded_all(asdict(result.after)),
            "kept": list(result.kept),
            "seconds": round(result.seconds, 2),
        }
    )
    return 0
