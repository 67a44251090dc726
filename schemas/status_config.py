"""The settings of `segmill status`."""

from pydantic import Field

from schemas.config import Config, DatasetUrl


class StatusConfig(Config):
    """Say what of a dataset is done, failed and left, and whether somebody should look at it."""

    dataset: DatasetUrl
    max_age_hours: float | None = Field(
        None,
        gt=0,
        description="exit with 1 when no annotation has ended well for so long; if absent age is no"
        " fault",
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="exit with 1 when more of the images are quarantined"
    )
    runs: int = Field(5, ge=1, description="the newest so many runs are told")
