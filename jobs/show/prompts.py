"""What `segmill train prompts` prints."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json

if TYPE_CHECKING:
    from jobs.train_prompts import TrainPromptsResult


def show_train_prompts(result: "TrainPromptsResult", console: Console) -> int:
    """Print the figures of every seed and of the baseline, and which prompt was kept."""
    from jobs.train_prompts import as_json

    for reason, number in result.skipped.items():
        console.print(f"{number} images were left out: {reason}", highlight=False, markup=False)
    table = Table(title=f"{result.held_out_samples} held-out regions", title_justify="left")
    for name in ("prompt", "accuracy", "loss", "loss on the regions learned from"):
        table.add_column(name, justify="left" if name == "prompt" else "right")
    table.add_row(
        result.baseline, f"{result.baseline_accuracy:.3f}", f"{result.baseline_loss:.3f}", ""
    )
    for seed in result.seeds:
        is_kept = " (kept)" if seed.seed == result.chosen_seed else ""
        figures = (seed.accuracy, seed.loss, seed.train_loss)
        table.add_row(f"seed {seed.seed}{is_kept}", *(f"{value:.3f}" for value in figures))
    console.print(table)
    console.print(
        f"annotate with it: --prompts {result.prompt}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    print_json(as_json(result))
    return 0
