"""The settings of `segmill train self-training` (spec 4)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.config import Config, DatasetVersion, LocalPath
from schemas.training_config import ProposalTrainingSettings


class PseudoLabelConfig(Config):
    """Which labels the pixels get that the truth knows no seen class of."""

    prior: Literal["unseen", "none"] = Field(
        "unseen",
        description="unseen: only unseen classes compete, by the softmax of their summed scores "
        "over all classes; none: all classes do, by their summed scores",
    )
    reject_threshold: float = Field(
        0.0,
        ge=0,
        description="a pixel whose best class is below this is ignored; with prior unseen a "
        "probability of the softmax over all classes (near 1 / classes), with none a summed score",
    )
    reject_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a pixel is ignored when its class has less than this of the masks over it, "
        "the score of `annotate`",
    )
    max_images_per_class: int | None = Field(
        None,
        ge=1,
        description="an unseen class keeps its pseudo labels in so many images, those of the best "
        "mean score, and is ignored in the others; in all if absent",
    )


class TrainSelfTrainingConfig(PseudoLabelConfig, ProposalTrainingSettings):
    """Train a proposer on the truth of seen classes and a dataset's labels of unseen ones."""

    labels: str = Field(
        description="Segmill dataset of the training images, annotated with --keep-embeddings; its "
        "settings (prompts, CLIP, ensemble) are those of the comparison too"
    )
    version: DatasetVersion = None
    output: LocalPath = Field(
        description="directory for the pseudo labels (pseudo/), the training (training/) and the "
        "comparison; on a cluster one that all machines share"
    )
    eval_split: str = Field("val", description="split of `dataset` to compare on")
    eval_images: LocalPath | None = Field(
        None, description="directory of images to compare on, where there is no dataset"
    )
    eval_masks: LocalPath | None = Field(
        None, description="directory of their PNG label maps, where there is no dataset"
    )
    ensemble_weight_after: float | None = Field(
        None,
        ge=0,
        le=1,
        description="ensemble_weight of the comparison after: by then the query head has learned "
        "all classes, and 0.5 treats them alike; that of the dataset if absent",
    )
    initial_weights: LocalPath | None = Field(
        None,
        description="directory of a proposer to start from; if absent the one that labelled, or "
        "random weights where `architecture` is given",
    )
    architecture: str | None = Field(
        None, description="start from random weights of this; see `segmill train proposals`"
    )
    backbone_weights: LocalPath | None = Field(
        None, description="file of weights that the backbone of `architecture` starts from"
    )

    @model_validator(mode="after")
    def _has_one_start(self) -> Self:
        if self.initial_weights is not None and self.architecture is not None:
            raise ValueError("initial_weights and architecture exclude each other")
        if self.backbone_weights is not None and self.architecture is None:
            raise ValueError(
                "backbone_weights go with an architecture; initial weights have theirs"
            )
        return self

    @model_validator(mode="after")
    def _has_something_to_compare_on(self) -> Self:
        given = (self.eval_images, self.eval_masks)
        if self.dataset is None and None in given:
            raise ValueError("give eval_images and eval_masks, or a dataset with its eval_split")
        if self.dataset is not None and any(given):
            raise ValueError("give dataset, or eval_images and eval_masks, not both")
        return self
