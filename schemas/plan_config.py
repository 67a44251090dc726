"""Settings of `segmill plan`."""

from pydantic import Field

from schemas.annotate_config import AnnotateConfig
from schemas.config import CpuHourPrice, GpuHourPrice


class PlanConfig(AnnotateConfig):
    """Predict what `annotate` with these settings would do and cost; nothing is labelled."""

    probe_images: int = Field(
        200, ge=1, description="images to measure with, on this machine; fewer where there are"
    )
    cpus: int | None = Field(
        None, ge=2, description="CPU cores to plan for; those of this machine if absent"
    )
    gpus: int | None = Field(
        None,
        ge=1,
        description="GPUs to plan for, such as the one that this machine must have to measure; "
        "those of this machine if absent",
    )
    cpu_hour_price: CpuHourPrice = 0.0
    gpu_hour_price: GpuHourPrice = 0.0
