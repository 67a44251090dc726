"""`segmill simulate`: what larger runs on larger clusters take, from a run that was measured."""

from dataclasses import dataclass
from typing import Final

from jobs.annotation_flows import part_rows
from jobs.annotation_pools import POOLS, planned_pools
from pipeline.meter import Spent, add_to
from pipeline.pool_sizes import Pool
from pipeline.prediction import Machines
from pipeline.run_records import newest_runs
from pipeline.secrets import hide_secrets
from pipeline.simulation import (
    Cluster,
    Engine,
    Losses,
    Measured,
    Pieces,
    Simulated,
    Store,
    simulate_run,
)
from pipeline.work_units import unit_rows
from schemas.errors import OutputError, SettingsError
from schemas.simulate_config import SimulateConfig

_RUNS_LOOKED_AT: Final = 50
_GIGABIT_BYTES: Final = 1e9 / 8


@dataclass(frozen=True)
class SimulateResult:
    """The run that was measured, and those that would be: every cluster with every size."""

    dataset: str
    run_id: str
    measured: Measured
    images: int  # that were measured
    runs: tuple[Simulated, ...]


def simulate(config: SimulateConfig) -> SimulateResult:
    """Predict runs; nothing is run and nothing is written.

    Raises OutputError when no run of the dataset has measured both pools, and SettingsError for a
    cluster without room for one actor of each.
    """
    run_id, measured = _measured(config.dataset)
    runs = tuple(
        _simulated(config, measured, machines, images)
        for machines in [_machines(config, cluster) for cluster in config.clusters]
        for images in config.images
    )
    measured_images = max(spent.images for spent in measured.spent.values())
    return SimulateResult(hide_secrets(config.dataset), run_id, measured, measured_images, runs)


def _measured(dataset: str) -> tuple[str, Measured]:
    for record in newest_runs(dataset, _RUNS_LOOKED_AT):
        meter = record.end.meter if record.end else None
        if meter is None or not meter.images:
            continue
        flows = [
            flow for flow in meter.flows if {stage.pool for stage in flow.stages} >= set(POOLS)
        ]
        if not flows:
            continue
        spent: dict[str, Spent] = {}
        for stage in (stage for flow in flows for stage in flow.stages):
            add_to(
                spent,
                {stage.name: Spent(stage.images, stage.size_bytes, stage.busy_s, stage.cpu_s)},
            )
        warm_up_s = max(flow.start_up_s for flow in flows)
        return record.run_id, Measured(spent, warm_up_s, meter.size_bytes / meter.images)
    raise OutputError(
        f"none of the newest {_RUNS_LOOKED_AT} runs of {hide_secrets(dataset)} has measured both "
        "pools; `segmill annotate` some thousand images of it on the machines that are meant"
    )


def _machines(config: SimulateConfig, cluster: str) -> Machines:
    cpus, gpus = map(int, cluster.split("x"))
    return Machines(
        cpus=cpus,
        gpus=gpus,
        actor_cpus=1,
        is_one_machine=False,
        cpu_hour_price=config.cpu_hour_price,
        gpu_hour_price=config.gpu_hour_price,
    )


def _pools(config: SimulateConfig, machines: Machines) -> dict[str, Pool]:
    """Return what an actor of each pool takes; raises SettingsError where not both find room."""
    whole = 1.0 if machines.gpus else 0.0  # pools that share a GPU by halves are not simulated
    propose, classify = (
        whole if share is None else share for share in (config.propose_gpus, config.classify_gpus)
    )
    pools = planned_pools(machines, (propose, classify), (None, None))
    cpus = 1 + sum(pool.cpus for pool in pools.values())  # one is left to decode
    gpus = sum(pool.gpus for pool in pools.values())
    if cpus > machines.cpus or gpus > machines.gpus:
        raise SettingsError(
            f"cluster {machines.cpus}x{machines.gpus} has no room for an actor of each pool and a "
            f"core for decoding, which take {cpus:g} cores and {gpus:g} GPUs (propose_gpus and "
            "classify_gpus say how many GPUs an actor takes)"
        )
    return pools


def _simulated(
    config: SimulateConfig, measured: Measured, machines: Machines, images: int
) -> Simulated:
    gigabits = config.store_gbit_s
    store = Store(
        config.gets_per_s,
        config.puts_per_s,
        None if gigabits is None else gigabits * _GIGABIT_BYTES,
        config.list_page_s,
    )
    losses = Losses(config.losses_per_hour, config.replace_s)
    pieces = Pieces(
        unit=unit_rows(images),
        part=part_rows(images, config.rows_per_file, None),
        file=config.rows_per_file,
        batches=dict(zip(POOLS, (config.propose_batch, config.classify_batch), strict=True)),
    )
    cluster = Cluster(machines, _pools(config, machines), store, losses)
    return simulate_run(images, measured, cluster, pieces, Engine())
