"""What a run of any size takes on a cluster of any size, and what of it gives out first.

A model of flows, not of events: in the long run a run goes as fast as the slowest of its pools, of
the cores, of the store, and of the one process that hands out the work. The first two come from
measured service times (`pipeline.prediction`), the store's from what it promises, and those of our
own design from what `tests/bench/limits.py` measures. Around it are the parts that one process does
alone: listing, planning, handing over the units of work, merging, publishing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.meter import Spent
from pipeline.pool_sizes import Pool
from pipeline.prediction import Machines, Prediction, predict

STORE_READS: Final = "store reads"
STORE_WRITES: Final = "store writes"
BANDWIDTH: Final = "store bandwidth"
SCHEDULER: Final = "scheduler"

_NAMES_PER_PAGE: Final = 1000  # of every store that speaks S3's protocol
_REQUESTS_PER_PART: Final = 2  # its rows, and the record that says that they are whole
# From where on a share, a wait, a memory or a file is told as a limit.
_MUCH: Final = 0.1
_HOUR: Final = 3600.0
_DRIVER_GB: Final = 16.0
_MANIFEST_MB: Final = 64.0


@dataclass(frozen=True)
class Engine:
    """What our own design takes of the one process that runs it.

    By `make bench-limits` on two cores of a small virtual machine (2026-11-27).
    """

    # Of the driver, per task of Ray Data: 4.7 ms for an actor's, 7.2 for another, with two at work
    # at a time. A round of Ray's loop serves all that have ended, so that it is less with more.
    task_s: float = 5.0e-3
    unit_s: float = 1.8e-3  # per unit of work, until the first can start
    unit_bytes: float = 4_000.0  # that the driver holds per unit
    driver_bytes: float = 2e9  # that it holds for all else, planning (which spills) included
    plan_s: float = 18.6e-6  # per image: reading the list, the join (`make bench-planning`)
    merge_bytes_per_s: float = 9.5e6  # of small parts, read and written again by one core
    file_bytes: float = 250.0  # of a manifest, per data file
    block_bytes: float = 32 * 2**20


@dataclass(frozen=True)
class Store:
    """What the object storage does for the whole cluster."""

    gets_per_s: float
    puts_per_s: float
    bytes_per_s: float | None  # None: no limit
    list_page_s: float


@dataclass(frozen=True)
class Losses:
    """How machines come and go."""

    per_hour: float = 0.0  # of one machine
    replace_s: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Where a run would be: machines, what an actor of each pool takes, and the store."""

    machines: Machines
    pools: Mapping[str, Pool]
    store: Store
    losses: Losses = Losses()


@dataclass(frozen=True)
class Pieces:
    """How many images are in a unit of work, in a part and in a published file."""

    unit: int
    part: int
    file: int
    batches: Mapping[str, int]  # images per call, by pool


@dataclass(frozen=True)
class Measured:
    """A run that was: what its steps took, in their order, and how much it wrote."""

    spent: Mapping[str, Spent]
    warm_up_s: float  # models, and the first image
    row_bytes: float  # written per image


@dataclass(frozen=True)
class Simulated:
    """A run that would be."""

    images: int
    machines: Machines
    prediction: Prediction  # of the pools and cores alone
    limits: Mapping[str, float]  # images per second that each could do
    phases: Mapping[str, float]  # seconds of each, in their order
    tasks: float
    units: int
    files: int
    manifest_bytes: float
    driver_bytes: float
    written_bytes: float
    lost_share: float  # of the machines' time, to machines that were taken away

    @property
    def binds(self) -> str | None:
        """What sets the rate."""
        return min(self.limits, key=lambda name: self.limits[name], default=None)

    @property
    def images_per_s(self) -> float:
        """The rate, once all machines are at work."""
        return min(self.limits.values(), default=0.0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of our own design is in the way of such a run, each in a line."""
        before = self.phases["list"] + self.phases["plan"] + self.phases["start"]
        gb, mb = self.driver_bytes / 1e9, self.manifest_bytes / 1e6
        found = {
            f"{self.images:,} images: before the first of them one process lists and plans for "
            f"{before / 3600:.1f} h, {before / self.seconds:.0%} of the run; split the source by "
            "folders into datasets of their own": before > _MUCH * self.seconds and before > _HOUR,
            f"{self.images:,} images on {self.machines.gpus} GPUs: one driver hands out at most "
            f"{self.limits[SCHEDULER]:.4g} images/s; several runs, each of a part of the source "
            "into a dataset of its own, have one each": self.binds == SCHEDULER,
            f"{self.images:,} images: the driver holds about {gb:.0f} GB": gb > _DRIVER_GB,
            f"{self.images:,} images: every reader fetches a manifest of {mb:.0f} MB; a larger "
            "rows_per_file makes it smaller": mb > _MANIFEST_MB,
        }
        return tuple(text for text, holds in found.items() if holds)

    @property
    def seconds(self) -> float:
        """From start to publication."""
        return sum(self.phases.values())


def simulate_run(
    images: int, measured: Measured, cluster: Cluster, pieces: Pieces, engine: Engine
) -> Simulated:
    """Return what a run over `images` takes."""
    machines, store, losses = cluster.machines, cluster.store, cluster.losses
    prediction = predict(images, measured.spent, measured.warm_up_s, machines, cluster.pools)
    steps = list(measured.spent)
    size = {name: _bytes_per_image(measured.spent[name]) for name in steps}
    # A machine that is taken away is missed until its successor has loaded its models.
    lost_share = losses.per_hour * (losses.replace_s + measured.warm_up_s) / 3600
    there = max(0.0, 1.0 - lost_share)
    tasks_per_image = _tasks_per_image(size, pieces, engine)
    limits = {name: limit * there for name, limit in prediction.flow.limits.items()}
    limits[STORE_READS] = store.gets_per_s
    limits[STORE_WRITES] = store.puts_per_s * pieces.part / _REQUESTS_PER_PART
    limits[SCHEDULER] = 1 / (tasks_per_image * engine.task_s)
    carried = size.get("fetch", 0.0) + 3 * measured.row_bytes  # written, and merged
    if store.bytes_per_s is not None and carried:
        limits[BANDWIDTH] = store.bytes_per_s / carried
    units, files = -(-images // pieces.unit), -(-images // pieces.file)
    merged = 2 * measured.row_bytes * images if pieces.part < pieces.file else 0.0
    merge_s = merged / (machines.cpus * engine.merge_bytes_per_s)
    if store.bytes_per_s is not None:
        merge_s = max(merge_s, merged / store.bytes_per_s)
    rate = min(limits.values())
    phases = {
        "list": images / _NAMES_PER_PAGE * store.list_page_s,
        "plan": images * engine.plan_s,
        "start": prediction.start_up_s + units * engine.unit_s,
        "label": images / rate if rate else float("inf"),
        "merge": merge_s,
    }
    return Simulated(
        images=images,
        machines=machines,
        prediction=prediction,
        limits=limits,
        phases=phases,
        tasks=images * tasks_per_image,
        units=units,
        files=files,
        manifest_bytes=files * engine.file_bytes,
        driver_bytes=engine.driver_bytes + units * engine.unit_bytes,
        written_bytes=images * measured.row_bytes,
        lost_share=min(1.0, lost_share),
    )


def _bytes_per_image(spent: Spent) -> float:
    return spent.size_bytes / spent.images if spent.images else 0.0


def _tasks_per_image(size: Mapping[str, float], pieces: Pieces, engine: Engine) -> float:
    """Add up the tasks of an image: of its unit, of its block before each pool, of its part."""
    tasks = 1 / pieces.unit + 1 / pieces.part
    rows = _rows_per_block(size.get("decode", 0.0), pieces.unit, engine)
    for pool, batch in pieces.batches.items():
        # A pool takes whole blocks, of at least a batch.
        rows = max(rows, min(batch, pieces.unit))
        tasks += 1 / rows
        rows = min(rows, _rows_per_block(size.get(pool, 0.0), pieces.unit, engine))
    return tasks


def _rows_per_block(size: float, unit: int, engine: Engine) -> float:
    if size <= 0:
        return unit
    blocks = max(1.0, unit * size / engine.block_bytes)
    return unit / blocks
