"""What a run measured of its own speed: per stage, per flow, and against what a plan predicted.

The ceiling is what the measured stages would reach if the slowest of them were never kept waiting:
workers / seconds per image, least over the pools of workers and over the cores that they share.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

CORES: Final = "cores"  # what binds where the processors are busier than any pool


class _Record(BaseModel):
    # Later versions of Segmill may tell more; whoever reads a record today reads on.
    model_config = ConfigDict(frozen=True, extra="ignore")


class StageMeter(_Record):
    """One step of a flow, added up over all workers; model loads are not in it."""

    name: str
    pool: str  # steps of one pool share its workers
    workers: int  # where machines came and went, of tasks the mean, rounded up
    worker_s: float  # time of all workers from their readiness to the last write
    images: int
    size_bytes: int  # what it read, handed on, or wrote
    busy_s: float
    cpu_s: float  # processor time: more than busy_s where it has several threads
    # Busy seconds per image of its whole pool by images per call, where several sizes were tried.
    tried_s: Mapping[int, float] = Field(default_factory=dict)

    @property
    def service_s(self) -> float:
        """Busy seconds per image."""
        return self.busy_s / self.images if self.images else 0.0

    @property
    def cpu_service_s(self) -> float:
        """Processor seconds per image."""
        return self.cpu_s / self.images if self.images else 0.0

    @property
    def utilisation(self) -> float:
        """Share of its workers' time that went into this step, [0, 1] but for rounding."""
        return self.busy_s / self.worker_s if self.worker_s else 0.0


class FlowMeter(_Record):
    """One pass of images through the stages, from warm pools to the last write."""

    images: int
    seconds: float
    start_up_s: float  # before: actors, model loads
    cores: int  # where machines came and went, the mean, rounded up
    stages: tuple[StageMeter, ...]  # in their order

    @property
    def images_per_s(self) -> float:
        """What was achieved."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def limits(self) -> dict[str, float]:
        """Images per second that each pool, and the cores, could do; without those never busy."""
        services: dict[str, float] = {}
        for stage in self.stages:
            service_s = stage.service_s / max(1, stage.workers)
            services[stage.pool] = services.get(stage.pool, 0.0) + service_s
        services[CORES] = sum(stage.cpu_service_s for stage in self.stages) / self.cores
        return {name: 1 / service_s for name, service_s in services.items() if service_s > 0}

    @property
    def ceiling(self) -> float:
        """Images per second if what binds had always been busy; 0 where nothing was measured."""
        return min(self.limits.values(), default=0.0)

    @property
    def share(self) -> float:
        """Achieved / ceiling."""
        return self.images_per_s / self.ceiling if self.ceiling else 0.0

    @property
    def binds(self) -> str | None:
        """The step that sets the ceiling, or `cores`; None where nothing was measured."""
        limits = self.limits
        if not limits:
            return None
        pool = min(limits, key=lambda name: limits[name])
        steps = [stage for stage in self.stages if stage.pool == pool]
        return max(steps, key=lambda stage: stage.busy_s).name if steps else pool


class PlanCheck(_Record):
    """What a plan predicted for the images that the run did, and what it took."""

    created: str  # of the plan
    predicted_s: float
    actual_s: float
    predicted_bytes: int
    actual_bytes: int


class RunMeter(_Record):
    """A run: its flows, and everything around them."""

    images: int
    seconds: float  # from the start of Ray to the last write
    size_bytes: int  # written
    flows: tuple[FlowMeter, ...]
    plan: PlanCheck | None = None

    @property
    def start_up_s(self) -> float:
        """Seconds in which no images flowed: Ray, prompts, model loads."""
        return max(0.0, self.seconds - sum(flow.seconds for flow in self.flows))
