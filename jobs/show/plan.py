"""What `segmill plan` prints."""

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json, rounded

if TYPE_CHECKING:
    from jobs.plan import PlanResult
    from pipeline.prediction import Prediction

_MOST_FINDINGS = 20  # printed; all are in the line of JSON


def show_plan(result: "PlanResult", console: Console) -> int:
    """Print what there is to do, what it would take, and the findings; always 0."""
    console.print(_to_do(result), highlight=False, markup=False, soft_wrap=True)
    if result.prediction is not None:
        _show_prediction(result, result.prediction, console)
    for finding in result.findings[:_MOST_FINDINGS]:
        console.print(
            f"{finding.kind}: {finding.message}; {finding.suggestion}",
            style="yellow", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    if len(result.findings) > _MOST_FINDINGS:
        console.print(f"and {len(result.findings) - _MOST_FINDINGS} more on the vocabulary")
    if result.not_recorded is not None:
        console.print(
            f"no run will be compared with this plan, it is not recorded: {result.not_recorded}",
            style="yellow", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    print_json(_values(result))
    return 0


def _to_do(result: "PlanResult") -> str:
    done = result.inventory - result.images
    text = f"{result.images} of {result.inventory} images are to be done, {done} are done"
    if result.reclassify:
        text += f"; {result.reclassify} with stored proposals, which cost less than is said here"
    if result.relabel:
        text += f"; {result.relabel} from kept embeddings alone, which are not in the prediction"
    return text


def _show_prediction(result: "PlanResult", prediction: "Prediction", console: Console) -> None:
    table = Table()
    table.add_column("stage")
    for name in ("ms/image", "CPU ms/image", "workers", "images/s at most"):
        table.add_column(name, justify="right")
    limits = prediction.flow.limits
    for stage in prediction.flow.stages:
        table.add_row(
            stage.name,
            f"{1000 * stage.service_s:.1f}",
            f"{1000 * stage.cpu_service_s:.1f}",
            str(stage.workers),
            f"{limits[stage.pool]:.2f}" if stage.pool in limits else "-",
        )
    console.print(table)
    machines = result.machines
    size_mb = (result.row_bytes + result.embeddings_bytes) / 1e6
    sizes = ", ".join(f"--{name}-actors {size}" for name, size in prediction.sizes.items())
    console.print(
        f"{machines.cpus} CPUs and {machines.gpus} GPUs: "
        f"{timedelta(seconds=round(prediction.seconds))} h, at most "
        f"{prediction.images_per_s:.2f} images/s, {prediction.binds or 'nothing'} binds; "
        f"{sizes}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(
        f"{prediction.cpu_hours:.2f} CPU hours, {prediction.gpu_hours:.2f} GPU hours, cost "
        f"{prediction.cost:.2f}; {size_mb:.1f} MB written, {result.embeddings_bytes / 1e6:.1f} of "
        "them embeddings",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _values(result: "PlanResult") -> dict[str, Any]:
    probe, prediction = result.probe, result.prediction
    values: dict[str, Any] = {
        "output": result.output,
        "inventory": result.inventory,
        "images": result.images,
        "fetch": result.fetch,
        "reclassify": result.reclassify,
        "relabel": result.relabel,
        "cpus": result.machines.cpus,
        "gpus": result.machines.gpus,
        "probe_images": probe.images if probe else 0,
        "probe_quarantined": probe.quarantined if probe else 0,
        "row_bytes": result.row_bytes,
        "embeddings_bytes": result.embeddings_bytes,
        "not_recorded": result.not_recorded,
    }
    if prediction is not None:
        values |= {
            "seconds": rounded(prediction.seconds),
            "start_up_seconds": rounded(prediction.start_up_s),
            "images_per_s": rounded(prediction.images_per_s),
            "binds": prediction.binds,
            "propose_actors": prediction.sizes["propose"],
            "classify_actors": prediction.sizes["classify"],
            "cpu_hours": rounded(prediction.cpu_hours),
            "gpu_hours": rounded(prediction.gpu_hours),
            "images_per_gpu_hour": _per_hour(prediction, prediction.gpu_hours),
            "cost": rounded(prediction.cost),
            "stages": {
                stage.name: {
                    "seconds_per_image": rounded(stage.service_s),
                    "cpu_seconds_per_image": rounded(stage.cpu_service_s),
                    "workers": stage.workers,
                }
                for stage in prediction.flow.stages
            },
        }
    return {**values, "findings": [asdict(finding) for finding in result.findings]}


def _per_hour(prediction: "Prediction", hours: float) -> float | None:
    return rounded(prediction.images / hours) if hours else None
