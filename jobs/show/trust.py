"""What the commands print that say how far labels can be trusted."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.show.printing import print_json

if TYPE_CHECKING:
    from jobs.calibrate import CalibrateResult
    from jobs.correct import CorrectResult
    from jobs.review import ReviewResult


def show_calibrate(result: "CalibrateResult", console: Console) -> int:
    """Print the floor of every class; 1 when nothing can be promised of any."""
    title = (
        f"version {result.version} of {result.dataset}: {result.segments} segments of "
        f"{result.images} images checked"
    )
    table = Table(title=escape(title), title_justify="left")
    for name in ("class", "floor", "keeps", "checked", "right", "at least"):
        table.add_column(name, justify="left" if name == "class" else "right")
    pooled = {name: floor for name, floor in result.floors.items() if floor.basis == "pooled"}
    shown = {escape(name): floor for name, floor in result.floors.items() if name not in pooled}
    for floor in list(pooled.values())[:1]:
        shown[f"{len(pooled)} rare ones together"] = floor
    for name, floor in shown.items():
        table.add_row(
            name,
            "cannot be promised" if floor.score is None else f"{floor.score:.4f}",
            f"{floor.kept_share:.1%}",
            str(floor.checked),
            f"{floor.correct} of {floor.kept}",
            "-" if floor.lower_bound is None else f"{floor.lower_bound:.3f}",
        )
    console.print(table)
    for reason in sorted({floor.reason for floor in result.floors.values() if floor.reason}):
        console.print(f"cannot be promised: {reason}", highlight=False, soft_wrap=True)
    print_json(
        {
            "output": result.output,
            "by": result.by,
            "version": result.version,
            "images": result.images,
            "segments": result.segments,
            "classes": len(result.floors),
            "promised": result.promised,
            "seconds": round(result.seconds, 2),
        }
    )
    return int(not result.promised)


def show_review(result: "ReviewResult", console: Console) -> int:
    """Print how many images are in the queue."""
    words = {"worth": "by their worth", "random": "at random"}
    chosen = ", ".join(f"{count} {words[why]}" for why, count in result.chosen.items() if count)
    console.print(
        f"{chosen or 'no doubtful image'}, of {result.images} of version {result.version}",
        highlight=False,
        soft_wrap=True,
    )
    print_json(
        {
            "output": result.output,
            "version": result.version,
            "images": result.images,
            "chosen": result.chosen,
            "seconds": round(result.seconds, 2),
        }
    )
    return 0


def show_correct(result: "CorrectResult", console: Console) -> int:
    """Print what became of the reviewed images; 1 when none of them could be taken."""
    lines = {
        f"{result.taken} corrected images in version {result.version}": result.published,
        f"version {result.version} stays the newest": not result.published,
        f"{result.unchanged} have these labels already": result.unchanged,
        f"{result.stale} are other images by now: their bytes have changed": result.stale,
        f"{result.unfinished} images of the file nobody has finished; they stay as they are": (
            result.unfinished
        ),
        f"{result.gone} are no labelled images of the newest version": result.gone,
    }
    for line, is_so in lines.items():
        if is_so:
            console.print(line, highlight=False, soft_wrap=True)
    print_json(
        {
            "dataset": result.dataset,
            "version": result.version,
            "published": result.published,
            "taken": result.taken,
            "unchanged": result.unchanged,
            "stale": result.stale,
            "unfinished": result.unfinished,
            "gone": result.gone,
            "seconds": round(result.seconds, 2),
        }
    )
    return int(not result.taken + result.unchanged)
