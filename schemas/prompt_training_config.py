"""The settings of `segmill train prompts`: defaults are the paper's for COCO-Stuff (spec 3.2)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.config import LocalPath
from schemas.training_config import TrainingDataSettings, TrainingExecution


class PromptDataSettings(TrainingDataSettings):
    """Which regions are learned from, and how each becomes CLIP's input."""

    samples_per_class: int = Field(
        32, ge=1, description="regions of a class that are learned from; all, where it has fewer"
    )
    repeat_samples: bool = Field(
        True, description="draw them with replacement, as the reference does"
    )
    sample_seed: int = Field(
        0, ge=0, description="of which regions are drawn, which are held out, and their views"
    )
    held_out: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the images that nothing is learned from: their regions choose among "
        "the seeds (samples_per_class of a class at most)",
    )
    augment: bool = Field(
        True, description="learn from a random part of a region, mirrored one time in two"
    )
    views_per_sample: int | None = Field(
        None,
        ge=1,
        description="different views of a region, met in turn; if absent a new one every time, as "
        "in the reference. Fewer make the image vectors, which are computed once, quicker to get",
    )
    region_fill: Literal["reference", "mean", "zero"] = Field(
        "reference",
        description="colour outside the mask: the reference's light grey (quirk B-4), or what "
        "annotate's mask_fill has, CLIP's mean colour or black",
    )
    region_shape: Literal["reference", "square"] = Field(
        "reference",
        description="CLIP's input: 244 high for 224 wide as the reference's (quirk B-5), positions "
        "interpolated, or the square of annotate",
    )


class TrainPromptsConfig(PromptDataSettings, TrainingExecution):
    """Learn a prompt for the seen classes, with several seeds, and keep the best; CLIP is frozen.

    Run again, it goes on; with more seeds, those are added.
    """

    output: LocalPath = Field(
        description="directory for the prompt (prompt.safetensors), the figures of every seed, "
        "image vectors and checkpoints; on a cluster one that all machines share"
    )
    clip: str = Field(
        "embedded",
        description="open_clip architecture, hf-hub:ORG/NAME, local-dir:PATH, or `embedded`; its "
        "text tower must read the text at its end token",
    )
    clip_weights: str | None = Field(
        None, description="open_clip tag, or a .safetensors / .pt file, for an architecture name"
    )
    vectors: int = Field(16, ge=1, description="learned vectors before every class name")
    seeds: tuple[int, ...] = Field(
        (0, 1, 2),
        min_length=1,
        description="a prompt is learned from each (first vectors, order of regions); the best of "
        "them is kept",
    )
    criterion: Literal["accuracy", "loss"] = Field(
        "accuracy",
        description="which is best: mean accuracy over classes on held-out regions, or their loss",
    )
    baseline: str = Field(
        "single", description="prompts whose figures are told beside: as annotate's `prompts`"
    )
    steps: int = Field(16_000, ge=1, description="optimiser steps of a seed")
    batch_size: int = Field(32, ge=1, description="regions per step")
    learning_rate: float = Field(0.02, gt=0, description="of the first step; it falls to 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="of stochastic gradient descent")
    weight_decay: float = Field(5e-4, ge=0, description="of the vectors")
    warmup_steps: int = Field(100, ge=0, description="steps at a small learning rate")
    warmup_factor: float = Field(0.005, gt=0, le=1, description="on the learning rate in them")
    max_norm: float = Field(0.01, gt=0, description="the gradient is clipped to this")
    image_batch: int = Field(256, ge=1, description="views per forward pass of the image tower")
    workers: int = Field(
        1, ge=1, description="training processes; they share image vectors, then seeds"
    )
    accumulation: int = Field(
        1,
        ge=1,
        description="parts in which the class names go through the text tower, for memory's sake",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds is {self.seeds}; they are different, and 0 or more")
        if len(self.seeds) > 1 and not self.held_out:
            raise ValueError(
                f"held_out is 0, so that nothing chooses among {len(self.seeds)} seeds; keep some "
                "images out, or give one seed"
            )
        return self
