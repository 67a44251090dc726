"""How the meter of a run is printed: a table of its stages, and what binds."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.show.printing import rounded

if TYPE_CHECKING:
    from schemas.meter import FlowMeter, RunMeter


def show_meter(meter: "RunMeter", console: Console) -> None:
    """Print a table per flow, each with its line of what was achieved of what was possible."""
    for flow in meter.flows:
        console.print(_table(flow))
        console.print(
            f"{flow.images_per_s:.2f} of at most {flow.ceiling:.2f} images/s ({flow.share:.0%}); "
            f"{flow.binds or 'nothing'} binds; {flow.start_up_s:.0f} s of start-up apart",
            highlight=False,
        )
    if meter.plan is not None:
        check = meter.plan
        console.print(
            f"the plan of {check.created} said {check.predicted_s:.0f} s and "
            f"{check.predicted_bytes / 1e6:.1f} MB; it was {check.actual_s:.0f} s "
            f"({_off(check.predicted_s, check.actual_s)}) and {check.actual_bytes / 1e6:.1f} MB "
            f"({_off(check.predicted_bytes, check.actual_bytes)})",
            highlight=False,
        )


def _off(predicted: float, actual: float) -> str:
    return f"{actual / predicted - 1:+.0%}" if predicted else "nothing was predicted"


def _table(flow: "FlowMeter") -> Table:
    table = Table()
    table.add_column("stage")
    for name in ("images", "ms/image", "CPU ms/image", "workers", "busy", "MB"):
        table.add_column(name, justify="right")
    for stage in flow.stages:
        table.add_row(
            stage.name,
            str(stage.images),
            f"{1000 * stage.service_s:.1f}",
            f"{1000 * stage.cpu_service_s:.1f}",
            str(stage.workers),
            f"{stage.utilisation:.0%}",
            f"{stage.size_bytes / 1e6:.1f}",
        )
    return table


def meter_values(meter: "RunMeter") -> dict[str, Any]:
    """Return the figures of the longest flow for programs."""
    values: dict[str, Any] = {"start_up_seconds": rounded(meter.start_up_s)}
    if meter.flows:
        flow = max(meter.flows, key=lambda flow: flow.seconds)
        values |= {
            "images_per_s": rounded(flow.images_per_s),
            "ceiling_images_per_s": rounded(flow.ceiling),
            "achieved": rounded(flow.share),
            "binds": flow.binds,
            "stages": {
                stage.name: {
                    "seconds_per_image": rounded(stage.service_s),
                    "cpu_seconds_per_image": rounded(stage.cpu_service_s),
                    "workers": stage.workers,
                    "busy": rounded(stage.utilisation),
                }
                for stage in flow.stages
            },
        }
    if meter.plan is not None:
        values["plan"] = {
            "predicted_seconds": rounded(meter.plan.predicted_s),
            "seconds": rounded(meter.plan.actual_s),
            "predicted_bytes": meter.plan.predicted_bytes,
            "bytes": meter.plan.actual_bytes,
        }
    return values
