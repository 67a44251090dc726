"""Settings of `segmill datasets`."""

from typing import Literal

from pydantic import Field

from schemas.config import Config, LocalPath


class DatasetsPrepareConfig(Config):
    """Turn an official download into images, maps of class indices, and a vocabulary."""

    name: str = Field(description="data set; see `segmill datasets list`")
    root: LocalPath = Field(
        description="directory of data sets: downloads are in it, ROOT/NAME is made"
    )
    source: LocalPath | None = Field(
        None, description="where the download was unpacked; ROOT if absent"
    )
    output: LocalPath | None = Field(None, description="directory to write; ROOT/NAME if absent")
    vocabulary: LocalPath | None = Field(
        None, description="class names: of a folder or Hugging Face data set, or for ade20k-847"
    )
    label_values: tuple[int, ...] = Field(
        (),
        description="what masks of a folder or Hugging Face data set hold for each class in order; "
        "0,1,2,... if absent",
    )
    ignore_values: tuple[int, ...] | None = Field(
        None,
        description="what such masks hold for pixels of no class; 255 if absent, 65535 from 256 "
        "classes",
    )
    image_column: str = Field("image", description="column of the images (Hugging Face)")
    mask_column: str | None = Field(
        None, description="column of the masks (Hugging Face); the other one of images if absent"
    )
    image_files: Literal["link", "copy"] = Field(
        "link", description="hard links to the download's images where the disk allows, or copies"
    )
    partial: bool = Field(
        False, description="accept other numbers of images than the official ones: a part"
    )
    max_bad_fraction: float = Field(
        0.0, ge=0, le=1, description="stop when more images or masks are broken or do not fit"
    )
    workers: int | None = Field(None, ge=1, description="processes; one per core if absent")
