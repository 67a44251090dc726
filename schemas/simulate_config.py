"""Settings of `segmill simulate`."""

from typing import Annotated

from pydantic import Field

from schemas.config import Config, CpuHourPrice, GpuHourPrice, RowsPerFile

_Cluster = Annotated[str, Field(pattern=r"^[1-9][0-9]*x[0-9]+$")]


class SimulateConfig(Config):
    """Predict time, cost and limits of far larger runs on far larger clusters from a measured one.

    Machines must be of the kind that the run was measured on.
    """

    dataset: str = Field(description="dataset directory or URL whose newest measured run is used")
    images: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10**6, 10**7, 10**8, 10**9), min_length=1, description="sizes of the corpus"
    )
    clusters: tuple[_Cluster, ...] = Field(
        ("64x8", "512x64", "4096x512"),
        min_length=1,
        description="CPU cores x GPUs of the workers in all, such as 64x8",
    )
    propose_gpus: float | None = Field(
        None, ge=0, description="GPUs per proposer actor; 1 where the cluster has any if absent"
    )
    classify_gpus: float | None = Field(
        None, ge=0, description="GPUs per classifier actor; 1 where the cluster has any if absent"
    )
    propose_batch: int = Field(8, ge=1, description="images per proposer call")
    classify_batch: int = Field(8, ge=1, description="images per classifier call")
    rows_per_file: RowsPerFile = 32_768
    cpu_hour_price: CpuHourPrice = 0.0
    gpu_hour_price: GpuHourPrice = 0.0
    gets_per_s: float = Field(
        5500.0, gt=0, description="reads a second that the store answers; S3's for one prefix"
    )
    puts_per_s: float = Field(
        3500.0, gt=0, description="writes a second that the store answers; S3's for one prefix"
    )
    store_gbit_s: float | None = Field(
        None, gt=0, description="what store and network carry for the cluster; no limit if absent"
    )
    list_page_s: float = Field(
        0.1, ge=0, description="seconds until the store has listed a page of 1,000 names"
    )
    losses_per_hour: float = Field(
        0.0, ge=0, description="how often an hour one machine of the cluster is taken away"
    )
    replace_s: float = Field(
        300.0, ge=0, description="seconds until a machine that was taken away has been replaced"
    )
