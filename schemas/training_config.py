"""The settings of `segmill train`: defaults are the paper's for COCO-Stuff (spec 3)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.annotate_config import IMAGE_EXTENSIONS
from schemas.config import Config, LocalPath, LockTtl


class TrainingDataSettings(Config):
    """What is learned from: images and label maps of equal names, and what the labels mean."""

    dataset: LocalPath | None = Field(
        None,
        description="directory with images/SPLIT, masks/SPLIT and vocabulary.yaml, or what its "
        "dataset.json names for the split, as `segmill datasets prepare` writes it",
    )
    split: str = Field(
        "train", description="which images of `dataset`; train_base: maps of seen classes alone"
    )
    images: LocalPath | None = Field(
        None, description="directory of images, where there is no dataset"
    )
    masks: LocalPath | None = Field(
        None, description="directory of PNG label maps, where there is no dataset"
    )
    vocabulary: LocalPath | None = Field(
        None,
        description="class names in the order of the labels, with seen flags (without any flag all "
        "are seen); if absent that of the split of `dataset`",
    )
    ignore_label: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="label of pixels of no class; 255 if absent, 65535 from 256 classes",
    )
    extensions: tuple[str, ...] = Field(IMAGE_EXTENSIONS, description="file name endings of images")
    max_image_pixels: int = Field(
        100_000_000, gt=0, description="images of more pixels are left out"
    )
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="do not start when more of the pairs cannot be read"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        directories = (self.images, self.masks)
        if self.dataset is None and None in (*directories, self.vocabulary):
            raise ValueError("give dataset, or images, masks and vocabulary")
        if self.dataset is not None and any(directories):
            raise ValueError("give dataset, or images and masks, not both")
        return self


class TextSettings(Config):
    """Whose text vectors the queries are classified by; they are computed once and frozen."""

    clip: str = Field(
        "embedded",
        description="open_clip architecture, hf-hub:ORG/NAME, local-dir:PATH, or `embedded`",
    )
    clip_weights: str | None = Field(
        None, description="open_clip tag, or a .safetensors / .pt file, for an architecture name"
    )
    prompts: str = Field(
        "single",
        description="single, vild, imagenet, a template with {}, a text file of templates, or a "
        ".safetensors file of a learned prompt",
    )


class AugmentationSettings(Config):
    """How an image is varied; every view is padded to the square of the crop."""

    short_edges: tuple[int, ...] = Field(
        tuple(range(320, 961, 64)), min_length=1, description="shorter sides, one drawn per view"
    )
    max_long_edge: int = Field(2560, ge=16, description="limit of the longer side in training")
    crop_size: int = Field(640, ge=32, description="side of the square that is cut out")
    colour_jitter: bool = Field(True, description="SSD's changes of colour")
    flip: bool = Field(True, description="mirror one view in two")


class TrainingExecution(Config):
    """Where a training runs; none of it decides what is learned."""

    address: str = Field("local", description="Ray cluster to join, or `local` for this machine")
    workers: int = Field(1, ge=1, description="training processes; the batch is shared by them")
    accumulation: int = Field(
        1, ge=1, description="parts in which a worker takes its share of a batch"
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs per worker; if absent, 1 where the cluster has GPUs"
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs per worker")
    loader_threads: int = Field(
        2, ge=1, description="threads of a worker that prepare the next batch"
    )
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="the newest so many are kept")
    log_every: int = Field(20, ge=1, description="steps between lines of the log")
    max_failures: int = Field(
        3, ge=0, description="go on so often from the last checkpoint when a worker dies"
    )
    lock_ttl_s: LockTtl = 60.0


class RecipeSettings(Config):
    """Steps, optimiser and losses of a MaskFormer's training."""

    steps: int = Field(60_000, ge=1, description="optimiser steps")
    batch_size: int = Field(32, ge=1, description="images per step, over all workers")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="arithmetic of the network; losses are always fp32"
    )
    learning_rate: float = Field(1e-4, gt=0, description="of the first step; it falls to 0")
    backbone_factor: float = Field(0.1, ge=0, description="on the learning rate of the backbone")
    schedule_power: float = Field(0.9, gt=0, description="of the falling learning rate")
    weight_decay: float = Field(
        1e-4, ge=0, description="of all but norms, embeddings and positions"
    )
    max_norm: float = Field(0.01, gt=0, description="gradients are clipped to this, as one vector")
    class_weight: float = Field(1.0, ge=0, description="weight of the class loss")
    mask_weight: float = Field(20.0, ge=0, description="weight of the focal loss of masks")
    dice_weight: float = Field(1.0, ge=0, description="weight of the dice loss of masks")
    no_object_weight: float = Field(
        0.1, gt=0, description="weight of queries without a mask in the class loss"
    )
    seed: int = Field(0, ge=0, description="of all that is random")


class ProposalTrainingSettings(
    TrainingDataSettings, AugmentationSettings, RecipeSettings, TrainingExecution
):
    """What every training of a MaskFormer takes."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        parts = self.workers * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared by {self.workers} workers in "
                f"{self.accumulation} parts; it must be a multiple of {parts}"
            )
        if min(self.short_edges) < 1:
            raise ValueError(f"short_edges holds {min(self.short_edges)}; sides are 1 or more")
        return self


class TrainProposalsConfig(ProposalTrainingSettings, TextSettings):
    """Train a MaskFormer on the seen classes of labelled images; run again, it goes on."""

    output: LocalPath = Field(
        description="directory for the weights (proposer/), checkpoints and logs; on a cluster one "
        "that all machines share"
    )
    architecture: str = Field(
        "r101c",
        description="r50, r101c, swin-tiny, swin-small, swin-base, tiny (the embedded one), or a "
        "config.json of a MaskFormer",
    )
    backbone_weights: LocalPath | None = Field(
        None, description="file of weights that the backbone starts from; random if absent"
    )
    initial_weights: LocalPath | None = Field(
        None, description="directory of a proposer to start from; it brings its architecture"
    )
    licence: str = Field("unknown", description="licence of the weights, recorded with them")
    short_edge: int = Field(640, ge=16, description="shorter side of images after training")
    long_edge: int = Field(2560, ge=16, description="limit of their longer side")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.short_edge > self.long_edge:
            raise ValueError(f"short_edge {self.short_edge} is above long_edge {self.long_edge}")
        if self.initial_weights is not None and self.backbone_weights is not None:
            raise ValueError("initial_weights and backbone_weights exclude each other")
        return self
