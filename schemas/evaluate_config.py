"""Settings of `segmill evaluate`."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.config import Config, DatasetVersion, LocalPath, LocalText


class EvaluateConfig(Config):
    """Compare labels with a truth: mean IoU of seen and unseen classes, calibration, and more."""

    dataset: str = Field(
        description="dataset directory or URL; or, with --vocabulary, a directory of PNG label maps"
    )
    truth: LocalText = Field(description="directory of truths named like the images")
    truth_format: Literal["classes", "segments", "bsds"] = Field(
        "classes",
        description="PNG maps of class indices; PNG maps of segment ids without classes (COCO "
        "panoptic: 0 is ignored); or the .mat files of BSDS500, by several people per image",
    )
    ignore: int | None = Field(
        None,
        ge=0,
        description="class index of the truth that counts nowhere; if absent 255, with over 255 "
        "classes 65535",
    )
    vocabulary: LocalPath | None = Field(
        None, description="class names of the label maps, where DATASET is a directory of these"
    )
    protocol: Literal["reference", "detectron2"] = Field(
        "reference",
        description="which classes enter the first mean IoU (both are printed): as in the paper's "
        "code those in the truth or in a prediction, or as in detectron2 those in the truth",
    )
    version: DatasetVersion = None
    proposals: bool = Field(
        False,
        description="measure the kept proposals as well (see annotate --keep-embeddings): recall, "
        "outlines, and the upper bound that they leave to any classifier",
    )
    workers: int | None = Field(
        None, ge=1, description="processes; if absent one per core where there are many images"
    )
    output: LocalPath | None = Field(None, description="JSON file to write with every figure")
    page: LocalPath | None = Field(None, description="HTML page to write, to look at the figures")

    @model_validator(mode="after")
    def _label_maps_are_no_dataset(self) -> "EvaluateConfig":
        if self.vocabulary is not None and self.version is not None:
            raise ValueError("version is of a dataset; with vocabulary label maps are read")
        if self.vocabulary is not None and self.proposals:
            raise ValueError("proposals are kept by a dataset; with vocabulary label maps are read")
        return self
