"""A training of prompts as its workers get it, and where its files are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pipeline.files import list_files
from pipeline.models.clip import ClipSource
from pipeline.resize import Size
from pipeline.training.labelled_images import LabelledImages
from pipeline.training.prompt_samples import Sample
from pipeline.training.region_views import REFERENCE_HEIGHT
from schemas.prompt_training_config import TrainPromptsConfig
from schemas.vocabulary import Vocabulary

PROMPT_FILE: Final = "prompt.safetensors"
FIGURES_FILE: Final = "figures.json"  # of a seed that is finished


@dataclass(frozen=True, eq=False)
class PromptTraining:
    """A training as its workers get it: settings, and what was found out before."""

    config: TrainPromptsConfig
    clip: ClipSource
    seen: Vocabulary
    data: LabelledImages
    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]

    @property
    def output(self) -> str:
        """The directory, as `pipeline.files` takes it."""
        return str(self.config.output)

    def output_of(self, seed: int) -> str:
        """Return the directory of one seed."""
        return f"{self.output}/seed-{seed}"

    def is_done(self, seed: int) -> bool:
        """Return whether a seed's prompt and figures are written."""
        return FIGURES_FILE in list_files(self.output_of(seed), "")

    @property
    def classes_without_samples(self) -> tuple[str, ...]:
        """Names of seen classes of which nothing is learned but that the others are not they."""
        met = {sample.position for sample in self.samples}
        return tuple(name for index, name in enumerate(self.seen.names) if index not in met)

    @property
    def num_views(self) -> int:
        """Views of a sample that are learned from: one for every turn of the samples, or fewer."""
        config = self.config
        if not config.augment:
            return 1
        turns = math.ceil(config.steps * config.batch_size / len(self.samples))
        return min(turns, config.views_per_sample or turns)

    def input_size(self, side: int) -> Size:
        """Return (height, width) of CLIP's input, of a CLIP whose own is a square of `side`."""
        if self.config.region_shape == "square":
            return side, side
        return round(side * REFERENCE_HEIGHT), side
