"""The settings of `segmill calibrate` and `segmill review`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.config import Config, DatasetUrl, DatasetVersion, LocalPath, LocalText, LockTtl


class CalibrateConfig(Config):
    """Find the score or margin of every class from which on segments are right as promised."""

    dataset: DatasetUrl
    output: LocalPath = Field(
        description="YAML file to write, for export --class-min-scores or --class-min-margins"
    )
    truth: LocalText | None = Field(
        None,
        description="directory of PNG label maps named like the images, for a random part of them",
    )
    reviews: LocalPath | None = Field(
        None, description="corrected tasks of `segmill review`, of the images that it chose"
    )
    by: Literal["score", "margin"] = Field(
        "score", description="which measure gets a floor; see `segments` in the README"
    )
    precision: float = Field(
        0.9, gt=0, lt=1, description="share of kept segments that shall be right, at least"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="chance that the promise holds")
    promise: Literal["each", "all"] = Field(
        "each",
        description="whether that confidence is for each class by itself, or for all at once",
    )
    min_overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of a segment's pixels that must be of its class for it to be right",
    )
    unpromised: Literal["drop", "keep"] = Field(
        "drop", description="what becomes of classes for which nothing can be promised"
    )
    ignore: int | None = Field(
        None,
        ge=0,
        description="class index of the truth that counts nowhere; if absent 255, with over 255 "
        "classes 65535",
    )
    seed: int = Field(0, ge=0, description="which segment of an image stands for the rare classes")
    version: int | None = Field(
        None, ge=1, description="dataset version; if absent the newest, or the reviewed one"
    )

    @model_validator(mode="after")
    def _has_one_truth(self) -> Self:
        if (self.truth is None) == (self.reviews is None):
            raise ValueError("name either --truth or --reviews, whichever people have checked")
        return self


class ReviewConfig(Config):
    """Write the images most worth a person's time as tasks with the labels that they have."""

    dataset: DatasetUrl
    output: LocalPath = Field(
        description="file to write: JSON (Label Studio; label_config.xml beside it) or XML (CVAT)"
    )
    format: Literal["label-studio", "cvat"] = Field(
        "label-studio", description="which labelling tool reads it"
    )
    budget: int = Field(200, ge=1, description="images that people have time for")
    random_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of them chosen at random, for `calibrate --reviews`: what is chosen "
        "for its doubt promises nothing of the rest",
    )
    seed: int = Field(0, ge=0, description="which images are chosen at random")
    version: DatasetVersion = None


class CorrectConfig(Config):
    """Put the labels of reviewed tasks in the place of a model's, in a new version of DATASET.

    They stay through later runs for as long as their image's bytes do.
    """

    dataset: DatasetUrl
    reviews: LocalPath = Field(
        description="the tasks as Label Studio (JSON) or CVAT (CVAT for images 1.1) exports them"
    )
    lock_ttl_s: LockTtl = 60.0
