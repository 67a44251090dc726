"""What the commands on data sets and training print."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json, rounded

if TYPE_CHECKING:
    from jobs.datasets import DatasetsResult, PrepareResult
    from jobs.train_proposals import TrainProposalsResult


def show_datasets(result: "DatasetsResult", console: Console) -> int:
    """Print what can be prepared, and from what."""
    for name, entry in result.entries.items():
        console.print(f"{name:<20}{entry.summary}", highlight=False, markup=False, soft_wrap=True)
        images = "".join(f", {split} {number:,} images" for split, number in entry.images.items())
        needs = f"{'':<20}from {', '.join(entry.downloads)}{images}"
        console.print(needs, style="dim", highlight=False, markup=False, soft_wrap=True)
    return 0


def show_prepare(result: "PrepareResult", console: Console) -> int:
    """Print a line per split."""
    dataset = result.dataset
    table = Table(title=f"{dataset.name} in {result.output}", title_justify="left")
    for name in ("split", "images", "skipped", "classes", "absent"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, facts in dataset.splits.items():
        absent = sum(number == 0 for number in facts.class_images)
        numbers = (facts.count, facts.skipped, len(facts.class_images), absent)
        table.add_row(split, *map(str, numbers))
    console.print(table)
    print_json(
        {
            "output": str(result.output),
            "images": {split: facts.count for split, facts in dataset.splits.items()},
            "skipped": {split: facts.skipped for split, facts in dataset.splits.items()},
            "seconds": round(result.seconds, 2),
        }
    )
    return 0


def show_train_proposals(result: "TrainProposalsResult", console: Console) -> int:
    """Print what was learned from, and where the weights are."""
    for reason, number in result.skipped.items():
        console.print(f"{number} images were left out: {reason}", highlight=False, markup=False)
    console.print(
        f"{result.steps - result.resumed_from} steps in {result.seconds:.1f} s with start-up; loss "
        f"{result.first_loss:.3f} -> {result.last_loss:.3f}",
        highlight=False,
    )
    console.print(
        f"annotate with them: --proposer-weights {result.proposer}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    print_json(
        {
            "proposer": str(result.proposer),
            "steps": result.steps,
            "resumed_from": result.resumed_from,
            "images": result.images,
            "skipped": dict(result.skipped),
            "seen_classes": result.seen_classes,
            "first_loss": rounded(result.first_loss),
            "last_loss": rounded(result.last_loss),
            "seconds": round(result.seconds, 2),
        }
    )
    return 0
