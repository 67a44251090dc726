"""The settings of `segmill export`."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.config import Config, DatasetUrl, DatasetVersion, LocalPath, RemoteSettings


class SelectionSettings(Config):
    """Which labels count, and under which class; all other pixels are ignored, of no class."""

    min_score: float = Field(
        0.0, ge=0, le=1, description="segments scored below this are ignored pixels"
    )
    class_min_scores: LocalPath | None = Field(
        None,
        description="YAML mapping of class names to a floor of their own, above or below it, or "
        "`drop`; or what `segmill calibrate` wrote",
    )
    min_margin: float = Field(
        0.0,
        ge=0,
        le=1,
        description="segments with a smaller lead over the second class are ignored",
    )
    class_min_margins: LocalPath | None = Field(
        None, description="as --class-min-scores, of margins (`segmill calibrate --by margin`)"
    )
    max_disagreement: float = Field(
        1.0, ge=0, le=1, description="segments of which query head and CLIP differ more are ignored"
    )
    min_stability: float = Field(
        0.0, ge=0, le=1, description="segments with less stable outlines are ignored"
    )
    min_area: int = Field(
        0, ge=0, description="segments of fewer pixels, after classes were joined, are ignored"
    )
    classes: LocalPath | None = Field(
        None,
        description="YAML mapping of class names to a new name, a new index, or `drop` (ignored); "
        "classes that it does not name stay as they are",
    )


class VersionSettings(SelectionSettings, RemoteSettings):
    """Which images of a dataset, and from where they may be fetched."""

    dataset: DatasetUrl
    version: DatasetVersion = None
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the images that are `val`, chosen by their ids"
    )
    split_seed: int = Field(0, ge=0, description="which images these are")
    trust_dataset: bool = Field(
        False, description="let a dataset in a store name images that are local files"
    )


class TrainingDataConfig(VersionSettings):
    """Images and label maps of a version, read for a training without being exported."""

    split: Literal["train", "val"] | None = Field(None, description="all images if absent")


class ExportConfig(VersionSettings):
    """Write a version of DATASET in the format that a trainer or a labelling tool reads."""

    format: str = Field(
        description="coco-instances (RLE), coco-polygons, coco-panoptic, semantic-png (VOC "
        "palette), detectron2-sem-seg, yolo-seg, hugging-face, webdataset, label-studio, cvat or "
        "fiftyone"
    )
    output: str = Field(description="directory or URL to write; an interrupted export goes on")
    images: Literal["copy", "link", "none"] = Field(
        "copy",
        description="copies of the images, hard links where the disk allows, or none: their "
        "places alone",
    )
    images_per_shard: int = Field(
        1000, ge=1, description="rows done at a time, and kept when the export is cut short"
    )
    workers: int | None = Field(
        None, ge=1, description="processes; if absent one per core where there are many shards"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="exit with 1 when more of the images had to be left out"
    )

    @model_validator(mode="after")
    def _output_is_another_place(self) -> "ExportConfig":
        if self.output.rstrip("/") == self.dataset.rstrip("/"):
            raise ValueError(f"output {self.output} is the dataset itself; name another directory")
        return self
