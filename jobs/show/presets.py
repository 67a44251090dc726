"""What `segmill presets` prints."""

from typing import TYPE_CHECKING, Any

from rich.console import Console

from jobs.show.printing import print_json, rounded

if TYPE_CHECKING:
    from jobs.presets import Estimate, PresetsResult

_FIGURES = {"seen_miou": "seen", "unseen_miou": "unseen", "hiou": "hIoU", "miou": "mIoU"}


def show_presets(result: "PresetsResult", console: Console) -> int:
    """Print title, expected numbers and estimates of each preset; of one, its commands too."""
    from jobs.presets import command_lines

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    for name, preset in result.presets.items():
        line(f"{name:<20}{preset.title}", "bold")
        for expected in preset.expected:
            figures = ", ".join(
                f"{_FIGURES[key]} {value}" for key, value in expected.figures.items()
            )
            line(f"{'':<20}{expected.name}: {figures} ({expected.source})")
        for command, estimate in result.estimates[name].items():
            line(f"{'':<20}{command}: {_told(estimate)}", "dim")
        if result.is_one:
            for note in preset.notes:
                line(f"{'':<20}{note}", "dim")
            for command in command_lines(name, preset):
                line(command)
    print_json(
        {
            name: {
                "expected": [_plain(expected.model_dump()) for expected in preset.expected],
                "trainings": {
                    command: {"steps": estimate.steps, "gpu_hours": rounded(estimate.gpu_hours)}
                    for command, estimate in result.estimates[name].items()
                },
            }
            for name, preset in result.presets.items()
        }
    )
    return 0


def _told(estimate: "Estimate") -> str:
    if estimate.gpu_hours is None:
        return f"{estimate.steps:,} steps; GPU hours unknown ({estimate.why_not})"
    return f"{estimate.steps:,} steps, {estimate.gpu_hours:,.1f} GPU hours"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, {})}
