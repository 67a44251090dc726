"""The settings of `segmill explain`."""

from pydantic import Field

from schemas.config import Config, DatasetUrl, DatasetVersion


class ExplainConfig(Config):
    """Say why one pixel has its label: from the rows of a dataset, without image or model."""

    dataset: DatasetUrl
    image: str = Field(description="image_id, uri, path, or file name where only one image has it")
    at: tuple[int, int] = Field(description="COLUMN,ROW of the pixel in the upright original")
    version: DatasetVersion = None
    top: int = Field(5, ge=1, description="classes and proposals to show")
