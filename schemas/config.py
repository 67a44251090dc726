"""What the settings of all commands share; these models are the only place of a default.

Flags, environment variables (SEGMILL_*) and YAML files are derived from them in `jobs/cli.py`.
Credentials are never settings: stores read theirs from the environment, a profile or an instance
role, so that a resolved config can be written beside the data.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_url(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError("must be a path on this machine, not a URL")
    return value


# Types, because several commands take them alike.
LocalPath = Annotated[Path, BeforeValidator(_no_url)]
LocalText = Annotated[str, BeforeValidator(_no_url)]  # a path that is kept as it was given
DatasetUrl = Annotated[str, Field(description="dataset directory or URL")]
DatasetVersion = Annotated[
    int | None, Field(ge=1, description="dataset version; the newest if absent")
]
LockTtl = Annotated[
    float,
    Field(gt=0, description="a run that was silent for so many seconds has lost what it writes"),
]
RowsPerFile = Annotated[int, Field(ge=1, description="images per Parquet file, at most")]
PlanMemoryMb = Annotated[
    int,
    Field(ge=64, description="memory for comparing source and dataset, in MiB; the rest spills"),
]
ObjectStoreMb = Annotated[
    int | None,
    Field(
        ge=80,
        description="what is held between the stages, in MiB: the size of a local run's object "
        "store; on a cluster what a run may take of all stores; Ray's choice if absent",
    ),
]
CpuHourPrice = Annotated[float, Field(ge=0, description="what an hour of one CPU core costs")]
GpuHourPrice = Annotated[float, Field(ge=0, description="what an hour of one GPU costs")]


class Config(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False)


class RemoteSettings(Config):
    """How long a store or a web server is waited for, and what URLs may lead to."""

    fetch_attempts: int = Field(
        4, ge=1, description="times that an image is asked for before it is given up"
    )
    web_timeout_seconds: float = Field(
        60.0, gt=0, description="time that a web server has for one image"
    )
    allow_private_addresses: bool = Field(
        False,
        description="let http(s) URLs lead to private, loopback, link-local and metadata addresses",
    )
