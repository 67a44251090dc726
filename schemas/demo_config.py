"""Settings of `segmill demo`."""

from pathlib import Path

from pydantic import Field

from schemas.config import Config, LocalPath


class DemoConfig(Config):
    """Make synthetic scenes, annotate them with the embedded models, evaluate and report."""

    output: LocalPath = Field(Path("demo"), description="directory for scenes, dataset and report")
    images: int = Field(200, ge=1, description="number of scenes")
    seed: int = Field(0, ge=0, description="which scenes")
