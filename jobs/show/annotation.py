"""What the commands that make and show labels print."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.show.meter import meter_values, show_meter
from jobs.show.printing import print_json, rounded

if TYPE_CHECKING:
    from jobs.annotation_run import AnnotateResult
    from jobs.demo import DemoResult
    from jobs.report import ReportResult


def show_annotate(result: "AnnotateResult", console: Console) -> int:
    """Print the account of the run; 1 when too many images were bad."""
    counts = result.counts
    table = Table(title=f"version {result.version} of {result.output}", title_justify="left")
    table.add_column("images", justify="right")
    table.add_column("")
    table.add_column("share", justify="right")

    def add(number: int, what: str) -> None:
        table.add_row(str(number), what, f"{number / counts.inventory:.1%}")

    changes = result.changes
    add(counts.inventory, "in the inventory")
    add(changes.kept, "  were done before")
    add(changes.done, "  done by this run")
    if changes.from_embeddings:
        add(changes.from_embeddings, "    from kept embeddings")
    add(counts.labelled, "labelled")
    add(counts.quarantined, "quarantined")
    for reason, number in counts.reasons.items():
        add(number, f"  {reason}")
    console.print(table)
    if not result.published:
        console.print("nothing has changed: this version stays the newest")
    if changes.removed:
        console.print(f"{changes.removed} images of the version before are no longer there")
    if result.ignored:
        console.print(f"{result.ignored} other files were passed over (see --extensions)")
    if result.repeated:
        console.print(f"{result.repeated} repeated entries of the list were taken once")
    rate = changes.done / result.seconds
    console.print(f"{result.seconds:.1f} s, {rate:.2f} images/s with start-up", highlight=False)
    if result.meter is not None:
        show_meter(result.meter, console)
    if result.too_many_bad:
        console.print("too many images were quarantined (see --max-bad-fraction)", style="red")
    print_json(
        {
            "output": result.output,
            "version": result.version,
            "published": result.published,
            "run_id": result.run_id,
            "images": counts.inventory,
            "done": changes.done,
            "from_embeddings": changes.from_embeddings,
            "removed": changes.removed,
            "labelled": counts.labelled,
            "quarantined": counts.quarantined,
            "seconds": round(result.seconds, 2),
            "meter": meter_values(result.meter) if result.meter else None,
        }
    )
    return int(result.too_many_bad)


def show_report(result: "ReportResult", console: Console) -> int:
    """Print where the page is."""
    console.print(f"open {result.output} in a browser", highlight=False, soft_wrap=True)
    if result.left_out:
        console.print(f"{result.left_out} images were left out (see --max-page-mb)")
    print_json(
        {
            "output": str(result.output),
            "images": result.images,
            "left_out": result.left_out,
            "unreadable": result.unreadable,
            "quarantined": result.quarantined,
            "size_bytes": result.size_bytes,
        }
    )
    return 0


def show_demo(result: "DemoResult", console: Console) -> int:
    """Print the figures of the demo."""
    if result.meter is not None:
        show_meter(result.meter, console)
    console.print(
        f"seen mIoU {result.seen_miou:.3f}, unseen mIoU {result.unseen_miou:.3f}, "
        f"hIoU {result.hiou:.3f}; open {result.report} in a browser",
        highlight=False,
        soft_wrap=True,
    )
    print_json(
        {
            "images": result.images,
            "seconds": round(result.seconds, 1),
            "seen_miou": rounded(result.seen_miou),
            "unseen_miou": rounded(result.unseen_miou),
            "hiou": rounded(result.hiou),
            "report": str(result.report),
        }
    )
    return 0
