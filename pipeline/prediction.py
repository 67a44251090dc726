"""What measured service times say of a run on given machines: sizes of pools, time, hours, cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.meter import Spent
from pipeline.pool_sizes import Offer, Pool, pool_sizes
from schemas.meter import FlowMeter, StageMeter

TASKS: Final = "tasks"
# Ray's own start, its actors, and the first row: 11 to 17 s where it was measured.
_START_S: Final = 14.0


@dataclass(frozen=True)
class Machines:
    """What a run is planned for; prices are per hour of one."""

    cpus: int
    gpus: int
    actor_cpus: int
    is_one_machine: bool
    cpu_hour_price: float
    gpu_hour_price: float

    def cpu_hours(self, seconds: float) -> float:
        """Return the hours of all cores for so long."""
        return self.cpus * seconds / 3600

    def gpu_hours(self, seconds: float) -> float:
        """Return the hours of all GPUs for so long."""
        return self.gpus * seconds / 3600

    def cost(self, seconds: float) -> float:
        """Return what all machines cost for so long."""
        cpus = self.cpu_hours(seconds) * self.cpu_hour_price
        return cpus + self.gpu_hours(seconds) * self.gpu_hour_price


@dataclass(frozen=True)
class Prediction:
    """A run over `images`; hours are of all CPUs and GPUs from its start to its end."""

    images: int
    flow: FlowMeter  # of the images measured, with the workers planned
    sizes: Mapping[str, int]  # actors by pool
    start_up_s: float
    seconds: float
    cpu_hours: float
    gpu_hours: float
    cost: float
    images_per_s: float  # once the pools are warm, if what binds is always busy
    binds: str | None  # a step, `cores` or `gpus`; None: nothing was measured

    @property
    def seconds_per_image(self) -> float:
        """The reciprocal of `images_per_s`."""
        return 1 / self.images_per_s if self.images_per_s else 0.0


def predict(
    images: int,
    spent: Mapping[str, Spent],
    warm_up_s: float,
    machines: Machines,
    pools: Mapping[str, Pool],
) -> Prediction:
    """Predict a run over `images` from what the steps of a probe took, in their order.

    `pools` says of each pool but the tasks' what a worker takes and whether its size is given; its
    service time is filled in here. The probe must have had as many cores as an actor has.
    """
    services = {step: _per_image(what) for step, what in spent.items()}
    sized = {
        name: Pool(services.get(name, 0.0), pool.cpus, pool.gpus, pool.most, pool.fixed)
        for name, pool in pools.items()
    }
    tasks_s = sum(seconds for step, seconds in services.items() if step not in pools)
    offer = Offer(machines.cpus, machines.gpus, machines.is_one_machine)
    if machines.is_one_machine and not machines.gpus:
        # Its cores are shared anyway: a second model would only take memory.
        sizes = {name: pool.fixed or 1 for name, pool in sized.items()}
        task_workers = machines.cpus
    else:
        sizes = pool_sizes(sized, tasks_s, offer)
        held = sum(sizes[name] * pool.cpus for name, pool in sized.items())
        task_workers = max(1, int(machines.cpus - held))
    flow = FlowMeter(
        images=max((what.images for what in spent.values()), default=0),
        seconds=sum(what.busy_s for what in spent.values()),
        start_up_s=warm_up_s,
        cores=machines.cpus,
        stages=tuple(
            _stage(step, what, sizes.get(step, task_workers), step in pools)
            for step, what in spent.items()
        ),
    )
    images_per_s, binds = flow.ceiling, flow.binds
    # Pools that share a GPU do not both have all of it.
    on_gpus_s = sum(pool.service_s for pool in sized.values() if pool.gpus)
    if on_gpus_s and machines.gpus / on_gpus_s < images_per_s:
        images_per_s, binds = machines.gpus / on_gpus_s, "gpus"
    start_up_s = _START_S + warm_up_s
    seconds = start_up_s + (images / images_per_s if images_per_s else 0.0)
    return Prediction(
        images=images,
        flow=flow,
        sizes=sizes,
        start_up_s=start_up_s,
        seconds=seconds,
        cpu_hours=machines.cpu_hours(seconds),
        gpu_hours=machines.gpu_hours(seconds),
        cost=machines.cost(seconds),
        images_per_s=images_per_s,
        binds=binds,
    )


def _per_image(spent: Spent) -> float:
    return spent.busy_s / spent.images if spent.images else 0.0


def _stage(step: str, spent: Spent, workers: int, is_pool: bool) -> StageMeter:
    return StageMeter(
        name=step,
        pool=step if is_pool else TASKS,
        workers=workers,
        worker_s=0.0,
        images=spent.images,
        size_bytes=spent.size_bytes,
        busy_s=spent.busy_s,
        cpu_s=spent.cpu_s,
    )
