"""What `segmill simulate` prints."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json, rounded, rounded_all

if TYPE_CHECKING:
    from jobs.simulate import SimulateResult
    from pipeline.simulation import Simulated

_NEXT = 3  # limits shown beside the one that binds


def show_simulate(result: "SimulateResult", console: Console) -> int:
    """Print a line per run that would be; always 0."""
    table = Table(title=f"from {result.images} images of run {result.run_id}", title_justify="left")
    for name in ("images", "CPUs x GPUs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("time", "images/s", "cost", "files", "manifest MB", "driver GB"):
        table.add_column(name, justify="right")
    table.add_column("binds (and what would next)")
    for run in result.runs:
        table.add_row(*_cells(run))
    console.print(table)
    for note in dict.fromkeys(note for run in result.runs for note in run.notes):
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    print_json(
        {
            "dataset": result.dataset,
            "run_id": result.run_id,
            "measured_images": result.images,
            "runs": [_values(run) for run in result.runs],
        }
    )
    return 0


def _cells(run: "Simulated") -> list[str]:
    order = sorted(run.limits, key=lambda name: run.limits[name])
    binds, *others = (f"{name} {run.limits[name]:.4g}" for name in order)
    return [
        f"{run.images:,}",
        f"{run.machines.cpus} x {run.machines.gpus}",
        str(timedelta(seconds=round(run.seconds))),
        f"{run.images_per_s:.4g}",
        f"{run.cost:,.2f}",
        f"{run.files:,}",
        f"{run.manifest_bytes / 1e6:.1f}",
        f"{run.driver_bytes / 1e9:.1f}",
        f"{binds} ({', '.join(others[:_NEXT])})",
    ]


def _values(run: "Simulated") -> dict[str, Any]:
    return {
        "images": run.images,
        "cpus": run.machines.cpus,
        "gpus": run.machines.gpus,
        "seconds": rounded(run.seconds),
        "images_per_s": rounded(run.images_per_s),
        "binds": run.binds,
        "limits": rounded_all(run.limits),
        "phases": rounded_all(run.phases),
        "actors": dict(run.prediction.sizes),
        "cpu_hours": rounded(run.cpu_hours),
        "gpu_hours": rounded(run.gpu_hours),
        "cost": rounded(run.cost),
        "written_bytes": round(run.written_bytes),
        "files": run.files,
        "manifest_bytes": round(run.manifest_bytes),
        "driver_bytes": round(run.driver_bytes),
        "units": run.units,
        "tasks": round(run.tasks),
        "lost_share": rounded(run.lost_share),
        "notes": list(run.notes),
    }
