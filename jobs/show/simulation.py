"""What `segmill simulate` prints."""

from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json, rounded, rounded_all

if TYPE_CHECKING:
    from jobs.simulate import SimulateResult
    from pipeline.simulation import Simulated

_PLAIN: Final[dict[str, Any]] = {"highlight": False, "markup": False, "soft_wrap": True}


def show_simulate(result: "SimulateResult", console: Console) -> int:
    """Print a line per run that would be, and the limits of every cluster; always 0."""
    table = Table(title=f"from {result.images} images of run {result.run_id}", title_justify="left")
    for name in ("images", "CPUs x GPUs", "hours", "cost", "images/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("binds", no_wrap=True)
    for run in result.runs:
        table.add_row(
            f"{run.images:,}",
            _machines(run),
            f"{run.seconds / 3600:,.1f}",
            f"{run.machines.cost(run.seconds):,.2f}",
            f"{run.images_per_s:,.4g}",
            run.binds,
        )
    console.print(table)
    largest = {_machines(run): run for run in result.runs}  # the last of each cluster
    for machines, run in largest.items():
        console.print(f"{machines}, {run.images:,} images: {_limits(run)}", **_PLAIN)
    for note in dict.fromkeys(note for run in result.runs for note in run.notes):
        console.print(note, style="yellow", **_PLAIN)
    print_json(
        {
            "dataset": result.dataset,
            "run_id": result.run_id,
            "measured_images": result.images,
            "runs": [_values(run) for run in result.runs],
        }
    )
    return 0


def _machines(run: "Simulated") -> str:
    return f"{run.machines.cpus} x {run.machines.gpus}"


def _limits(run: "Simulated") -> str:
    order = sorted(run.limits, key=lambda name: run.limits[name])
    return ", ".join(f"{name} {run.limits[name]:,.4g}" for name in order) + " images/s at most"


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
        "cpu_hours": rounded(run.machines.cpu_hours(run.seconds)),
        "gpu_hours": rounded(run.machines.gpu_hours(run.seconds)),
        "cost": rounded(run.machines.cost(run.seconds)),
        "written_bytes": round(run.written_bytes),
        "files": run.files,
        "manifest_bytes": round(run.manifest_bytes),
        "driver_bytes": round(run.driver_bytes),
        "units": run.units,
        "tasks": round(run.tasks),
        "lost_share": rounded(run.lost_share),
        "notes": list(run.notes),
    }
