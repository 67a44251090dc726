"""The settings of `segmill drain`."""

from typing import Literal

from pydantic import Field

from schemas.config import Config


class DrainConfig(Config):
    """Tell Ray that this machine will be taken away, so that no new work is put on it."""

    address: str = Field(
        "auto", description="the cluster of this machine's node: `auto`, or the head's HOST:PORT"
    )
    cloud: Literal["aws", "gcp"] = Field(
        "aws", description="whose notice of a spot machine's end is waited for"
    )
    now: bool = Field(False, description="drain at once, waiting for no notice")
    deadline_s: float = Field(
        120.0,
        gt=0,
        description="seconds that the machine has left, where no notice says how many; AWS gives "
        "120, GCP 30",
    )
    poll_s: float = Field(5.0, gt=0, description="seconds between two looks for a notice")
    metadata_url: str | None = Field(
        None, description="address of the machine's metadata service; if absent the cloud's own"
    )
