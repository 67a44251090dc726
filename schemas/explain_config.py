"""The settings of `segmill explain`."""

from pydantic import Field

from schemas.config import Config


class ExplainConfig(Config):
    """Say why one pixel has its label: from the rows of a dataset, without image or model."""

    dataset: str = Field(description="dataset directory or URL")
    image: str = Field(description="image_id, uri, path, or file name where only one image has it")
    at: tuple[int, int] = Field(description="COLUMN,ROW of the pixel in the upright original")
    version: int | None = Field(None, ge=1, description="dataset version; the newest if absent")
    top: int = Field(5, ge=1, description="classes and proposals to show")
