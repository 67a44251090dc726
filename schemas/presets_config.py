"""The settings of `segmill presets`."""

from pydantic import Field

from schemas.config import Config, LocalPath


class PresetsConfig(Config):
    """List the rows of the paper's tables; of one, its commands. Hours are told where measured."""

    name: str | None = Field(None, description="one preset; all if absent")
    seconds_per_step: float | None = Field(
        None, gt=0, description="measured time of a step of `train proposals`"
    )
    prompt_seconds_per_step: float | None = Field(
        None, gt=0, description="measured time of a step of `train prompts`"
    )
    log: tuple[LocalPath, ...] = Field(
        (), description="outputs of trainings: their times are read, where they fit a preset"
    )
    gpus: int = Field(1, ge=1, description="GPUs that the measured training ran on")
