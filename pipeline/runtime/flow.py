"""Flows: units of work through the stages, as tasks and actor pools of one Ray Data plan."""

import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from pipeline.cores import cores
from pipeline.machines import ANY_MACHINE, Device, offer
from pipeline.runtime.board import TASKS, WRITE, Board, Crew, reported_error
from pipeline.runtime.connection import started_here
from pipeline.runtime.errors import cause
from pipeline.runtime.sink import DatasetSink
from pipeline.runtime.spans import Tracing
from pipeline.runtime.worker import Intake, Stage, pool_class, run_stage, take_in
from schemas.manifest import Part
from schemas.meter import FlowMeter

# Bytes of a block between the stages: a task that decodes many images hands them on in blocks of
# this size, and blocks are what queues are made of.
_BLOCK_BYTES: Final = 32 * 2**20
# Declared so that Ray does not start more decodes than fit. It also keeps Ray from fusing the
# decode tasks into the proposer's actors, where they would hold up the GPU.
_DECODE_MEMORY: Final = 768 * 2**20
# Ray Data keeps an eighth of all CPUs, and at least one, for an operator without a limit. Writes
# wait for the store most of the time, and images leave in large parts: a sixteenth is plenty.
_WRITE_CPUS: Final = 0.25
_LEAST_WRITES: Final = 4  # at once
_POLL_S: Final = 0.5

ProgressCallback = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class Placement:
    """A stage and where it runs: as tasks (no actors) or in its own pool of actors."""

    stage: Stage
    batch_size: int | None  # rows; None, of tasks: as the intake yields them
    actors: int = 0
    device: Device = ANY_MACHINE
    num_cpus: int = 1  # of an actor; Ray sets OMP_NUM_THREADS to it
    sizes_tried: Sequence[int] = ()  # by actors, in turn: images per call, of those of a batch


@dataclass(frozen=True)
class Flow:
    """One pass through the cluster: units of work, what makes rows of them, and the stages."""

    units: pa.Table
    images: int
    intake: Intake
    placements: Sequence[Placement]


@dataclass(frozen=True)
class FlowResult:
    """What a flow wrote, and what it measured of itself; None where its board was lost."""

    parts: list[Part]
    meter: FlowMeter | None


def run_flow(
    flow: Flow, dataset: str, run_id: str, rows_per_part: int, on_progress: ProgressCallback
) -> FlowResult:
    """Stream units through the stages into Parquet files; return what was written and measured.

    Nothing is published. `on_progress` is called from another thread, about twice a second, with
    the number of images that have left each stage. Raises SegmillError when the run is cut short;
    the parts written until then stay, with their records.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    # The limit of writes is one of the cluster; that a small run has fewer parts is no mistake.
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks for 'Write'")
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").level)
    crew = _crew(flow, run_id)
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote(crew)
    rows = units_dataset(flow.units).map_batches(
        take_in, fn_args=(flow.intake, board), batch_size=1, batch_format="pyarrow",
        memory=_DECODE_MEMORY,
    )  # fmt: skip
    for placement in flow.placements:
        rows = _attach(rows, placement, board)
    sink = DatasetSink(dataset, run_id, rows_per_part, board)
    stop = threading.Event()
    poller = threading.Thread(target=_poll, args=(board, flow, on_progress, stop), daemon=True)
    poller.start()
    try:
        # As many as the cluster may grow to need.
        writes = _writes_at_once(offer(())[0].cpus)
        rows.write_datasink(sink, ray_remote_args={"num_cpus": _WRITE_CPUS}, concurrency=writes)
        return FlowResult(sink.parts, _meter(board))
    except (ray.exceptions.RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        raise reported_error(board) or cause(error) from None
    finally:
        stop.set()
        poller.join()
        if crew.tracing is not None:
            with suppress(ray.exceptions.RayError):
                ray.get(board.close.remote(), timeout=10)
        ray.kill(board)


def units_dataset(units: pa.Table) -> ray.data.Dataset:
    """Return the units of work, each a block of its own.

    From items, whose blocks Ray describes itself: for every Arrow table it runs a task.
    """
    return ray.data.from_items(units.to_pylist(), override_num_blocks=len(units))


def _writes_at_once(cpus: float) -> int:
    return max(_LEAST_WRITES, int(cpus / 16 / _WRITE_CPUS))


def _crew(flow: Flow, run_id: str) -> Crew:
    """Return who works on a flow as it starts."""
    pool_of = {step: TASKS for step in flow.intake.steps}
    for placement in flow.placements:
        name = placement.stage.name
        pool_of[name] = name if placement.actors else TASKS
    pools = [placement for placement in flow.placements if placement.actors]
    workers = {placement.stage.name: placement.actors for placement in pools}
    tasks, all_cores = _size(flow)
    return Crew(
        run_id=run_id,
        images=flow.images,
        pool_of={**pool_of, WRITE: TASKS},
        workers={**workers, TASKS: tasks},
        cores=all_cores,
        tracing=Tracing.of_environment(),
    )


def _size(flow: Flow) -> tuple[int, int]:
    """Return the workers of tasks and the cores of the machines that are there now.

    Tasks have the CPUs that no other holds, as memory allows.
    """
    offered = ray.cluster_resources()
    cpus = int(offered.get("CPU", 1))
    held = sum(placement.actors * placement.num_cpus for placement in flow.placements)
    held += round(_writes_at_once(cpus) * _WRITE_CPUS)
    by_memory = int(offered.get("memory", _DECODE_MEMORY) // _DECODE_MEMORY)
    alive = [node for node in ray.nodes() if node["Alive"]]
    # On one machine Ray is told of more CPUs than there are: pools and tasks share them.
    return max(1, min(cpus - held, by_memory)), cores() if len(alive) == 1 else max(1, cpus)


def _meter(board: Any) -> FlowMeter | None:
    with suppress(ray.exceptions.RayError):
        meter: FlowMeter | None = ray.get(board.meter.remote(), timeout=10)
        return meter
    return None


def _attach(rows: ray.data.Dataset, placement: Placement, board: Any) -> ray.data.Dataset:
    options: dict[str, Any] = {
        "batch_format": "pyarrow",
        "batch_size": placement.batch_size,
        "udf_modifying_row_count": False,
    }
    if not placement.actors:
        return rows.map_batches(
            run_stage, fn_args=(placement.stage, board), memory=_DECODE_MEMORY, **options
        )
    return rows.map_batches(
        pool_class(placement.stage.name),
        fn_constructor_args=(placement.stage, board, placement.sizes_tried),
        compute=ActorPoolStrategy(size=placement.actors),
        num_cpus=placement.num_cpus,
        **placement.device.options,
        **options,
    )


def _poll(board: Any, flow: Flow, on_progress: ProgressCallback, stop: threading.Event) -> None:
    while True:
        stopped = stop.wait(_POLL_S)
        # Progress is a courtesy: never end a run for it.
        with suppress(ray.exceptions.RayError):
            if not stopped and not started_here():
                board.resize.remote(*_size(flow))  # machines come and go
            on_progress(ray.get(board.read.remote(), timeout=10))
        if stopped:
            return
