"""Sizes of the two pools of a run and of their batches: given, or `auto`, by a probe's times."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from pipeline import machines
from pipeline.batch_sizes import TRIED, USUAL, batch_size
from pipeline.cores import cores
from pipeline.machines import Device
from pipeline.models.device import num_gpus
from pipeline.pool_sizes import Pool, pool_sizes
from pipeline.prediction import Machines
from pipeline.work_units import Units
from schemas.annotate_config import ExecutionSettings
from schemas.errors import SettingsError
from schemas.meter import FlowMeter

POOLS: Final = ("propose", "classify")
# Enough for service times that hold; a run of fewer than so many probes is over sooner without.
_PROBE_IMAGES_PER_ACTOR: Final = 64
_ROUNDS_OF_BATCHES: Final = 4  # of all sizes tried; the first is not measured
_PROBES_IN_A_RUN: Final = 16


@dataclass(frozen=True)
class Pools:
    """Sizes of the pools and of their batches, and what one actor of each takes; pairs of POOLS."""

    actors: tuple[int, int]
    batches: tuple[int, int]
    devices: tuple[Device, Device]
    actor_cpus: int
    fixed: tuple[int | None, int | None]  # actors as given; None: to be chosen
    fixed_batches: tuple[int | None, int | None]

    @classmethod
    def at_start(cls, config: ExecutionSettings, devices: tuple[Device, Device]) -> "Pools":
        """Return what was given; what is to be chosen takes equal shares of the cluster.

        Raises SettingsError where nobody knows how large the cluster will be.
        """
        fixed = _given(config.propose_actors), _given(config.classify_actors)
        if None in fixed and machines.grows_untold():
            unknown = [
                f"{name}_actors" for name, size in zip(POOLS, fixed, strict=True) if not size
            ]
            raise SettingsError(
                "the cluster's autoscaler does not tell how many machines it may add, which auto "
                f"would need: give {' and '.join(unknown)} as a number"
            )
        given = _given(config.propose_batch), _given(config.classify_batch)
        cpus = actor_cpus(config)
        if config.address == "local":
            # A Ray that was there before need not have room for all; one CPU stays for the tasks.
            room = int(machines.offer(devices)[0].cpus) - 1
            cpus = max(1, min(cpus, room // _actors_here(config)))
        unsized = cls((1, 1), first_batches(config), devices, cpus, fixed, given)
        return unsized._sized((1.0, 1.0), 1.0)

    def __str__(self) -> str:
        each = zip(POOLS, self.actors, self.batches, strict=True)
        return ", ".join(
            f"{actors} to {name}, {batch} images a call" for name, actors, batch in each
        )

    def measured(self, meter: FlowMeter) -> "Pools":
        """Return the sizes that the service times of a probe make fastest."""
        batches, pools_s = list(self.batches), [0.0, 0.0]
        for index, name in enumerate(POOLS):
            steps = [stage for stage in meter.stages if stage.pool == name]
            pools_s[index] = sum(step.service_s for step in steps)
            if tried_s := next((step.tried_s for step in steps if step.tried_s), None):
                batches[index] = batch_size(tried_s)
                pools_s[index] = tried_s[batches[index]]
        tasks_s = sum(stage.service_s for stage in meter.stages if stage.pool not in POOLS)
        known = replace(self, batches=(batches[0], batches[1]))
        return known._sized((pools_s[0], pools_s[1]), tasks_s)

    def sizes_tried(self, pool: str) -> tuple[int, ...]:
        """Return the sizes of batches that a probe tries in a pool: none where one was given."""
        return () if self.fixed_batches[POOLS.index(pool)] else TRIED

    def probe_of(self, units: Units) -> tuple[Units, Units] | None:
        """Return units to measure with, spread evenly, and the others; None: not worth it."""
        each = _PROBE_IMAGES_PER_ACTOR
        if None in self.fixed_batches:
            each = _ROUNDS_OF_BATCHES * len(TRIED) * max(TRIED)
        images = each * sum(self.actors)
        if (
            None not in (*self.fixed, *self.fixed_batches)
            or units.images < _PROBES_IN_A_RUN * images
        ):
            return None
        step = max(2, units.images // images)
        probed = [index for index in range(len(units.table)) if index % step == 0]
        others = [index for index in range(len(units.table)) if index % step]
        # Units are of one size, but for the last of each file.
        share = round(units.images * len(probed) / len(units.table))
        return (
            Units(units.table.take(probed), share),
            Units(units.table.take(others), units.images - share),
        )

    def _sized(self, pools_s: tuple[float, float], tasks_s: float) -> "Pools":
        propose, classify = self.fixed
        if propose is not None and classify is not None:
            return replace(self, actors=(propose, classify))
        offer, rooms = machines.offer(self.devices)
        pools = {
            name: Pool(service_s, self.actor_cpus, device.num_gpus, room, fixed)
            for name, service_s, device, room, fixed in zip(
                POOLS, pools_s, self.devices, rooms, self.fixed, strict=True
            )
        }
        if not offer.gpus and not any(room is not None for room in rooms) and offer.is_one_machine:
            # Its cores are shared anyway: a second model would only take memory.
            sizes = {name: pool.fixed or 1 for name, pool in pools.items()}
        else:
            sizes = pool_sizes(pools, tasks_s, offer)
        return replace(self, actors=(sizes[POOLS[0]], sizes[POOLS[1]]))


def planned_pools(
    machines: Machines, gpus: tuple[float | None, float | None], fixed: tuple[int | None, ...]
) -> dict[str, Pool]:
    """Return what an actor of each pool takes on machines that need not be here, unmeasured.

    `gpus` and `fixed` (sizes) are of POOLS; None GPUs are one, or half of the only one.
    """
    a_gpu = 0.5 if machines.gpus == 1 else float(machines.gpus > 0)
    return {
        name: Pool(
            0.0, cpus=machines.actor_cpus, gpus=a_gpu if share is None else share, fixed=size
        )
        for name, share, size in zip(POOLS, gpus, fixed, strict=True)
    }


def first_batches(config: ExecutionSettings) -> tuple[int, int]:
    """Return the images per call of POOLS, as far as they are known before anything is measured."""
    return _given(config.propose_batch) or USUAL, _given(config.classify_batch) or USUAL


def actor_cpus(config: ExecutionSettings) -> int:
    """Return the CPUs per actor, which are its threads: one on a cluster.

    On one machine without a GPU every actor has all cores, for what binds, nearly always CLIP,
    should never leave one idle; beside a GPU they share the cores.
    """
    if config.address != "local":
        return 1
    return max(1, cores() // _actors_here(config)) if num_gpus() else cores()


def held_cpus(config: ExecutionSettings) -> int:
    """Return the CPUs that a local Ray must have for the actors of both pools."""
    return _actors_here(config) * actor_cpus(config)


def _given(size: int | Literal["auto"]) -> int | None:
    return None if size == "auto" else size


def _actors_here(config: ExecutionSettings) -> int:
    given = _given(config.propose_actors), _given(config.classify_actors)
    fixed = [size for size in given if size]
    # One a GPU, if they are to be chosen: that is the most that there will be.
    chosen = max(2 - len(fixed), num_gpus() - sum(fixed)) if len(fixed) < 2 else 0
    return sum(fixed) + chosen
