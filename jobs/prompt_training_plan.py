"""Everything of a training of prompts that is checked and fixed before its first step.

Dimension key: K seen classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.progress import Progress
from jobs.training_plan import (
    absolute,
    examine,
    labelled_images,
    read_classes,
    refuse_other_settings,
    seen_classes,
    usable,
)
from pipeline import runtime
from pipeline.models.clip import Clip, ClipCard, ClipSource, text_vectors
from pipeline.models.clip_positions import check_input_size
from pipeline.models.weight_cache import pinned
from pipeline.prompts import Prompts, load_prompts
from pipeline.training.labelled_images import Finding, LabelledImages
from pipeline.training.prompt_samples import draw, draw_held_out, hold_out
from pipeline.training.prompt_text import ClassTexts
from pipeline.training.prompt_training import PromptTraining
from schemas.prompt_training_config import TrainPromptsConfig
from schemas.training_config import TrainingExecution
from schemas.vocabulary import Vocabulary

# Settings of which another value leaves what a seed learns as it is.
_NOT_DECIDING = {*TrainingExecution.model_fields, "output", "seeds", "criterion", "image_batch"}


@dataclass(frozen=True)
class PromptTrainingPlan:
    """The settings with what they name, checked; no model is loaded for it."""

    config: TrainPromptsConfig
    vocabulary: Vocabulary
    data: LabelledImages
    clip: ClipSource
    clip_card: ClipCard
    baseline: Prompts

    @classmethod
    def of(cls, given: TrainPromptsConfig) -> "PromptTrainingPlan":
        """Read and check what the settings name; raises SettingsError (or a kind of it)."""
        config = absolute(given)
        vocabulary = read_classes(config)
        data = labelled_images(config, vocabulary)
        clip = ClipSource.of(config.clip, pinned(config.clip_weights))
        card = clip.on_this_machine().describe()
        return cls(config, vocabulary, data, clip, card, load_prompts(config.baseline))

    @property
    def seen(self) -> Vocabulary:
        """The classes that are learned from, in the order of their positions."""
        return seen_classes(self.vocabulary, self.data)

    def baseline_vectors(self, progress: Progress) -> NDArray[np.float32]:
        """Return the text vectors (K, D) of the baseline, once CLIP was found to fit the settings.

        Raises ModelError for a CLIP that no prompt can be learned for.
        """
        progress.say(f"text vectors of {self.data.num_seen} seen classes")
        plain = PromptTraining(self.config, self.clip, self.seen, self.data, (), ())
        return runtime.run_task(_check_clip, plain, self.baseline)

    def refuse_other_settings(self) -> None:
        """Raise SettingsError where the output is that of a training with other settings."""
        refuse_other_settings(str(self.config.output), self._deciding())

    def _deciding(self) -> dict[str, Any]:
        """Return the settings that decide a seed's results, the class list, and what files hold."""
        settings = self.config.model_dump(mode="json", exclude=_NOT_DECIDING)
        return {
            **settings,
            "ignore_label": self.data.ignore_label,
            "classes": self.vocabulary.model_dump(mode="json")["classes"],
            "baseline_identity": list(self.baseline.identity),
            "clip_sha256": self.clip_card.weights_sha256,
        }

    def findings(self, progress: Progress) -> list[Finding]:
        """Read every pair once, on the whole cluster; a run that goes on knows the result."""
        output = str(self.config.output)
        return examine(self.config, output, self.data, self._deciding(), progress)

    def training(self, findings: Sequence[Finding]) -> PromptTraining:
        """Return what workers get; raises SettingsError when too little can be learned from."""
        config = self.config
        good = usable(config, findings)
        learned, kept_out = hold_out(good, config.held_out, config.sample_seed)
        return PromptTraining(
            config=config,
            clip=self.clip,
            seen=self.seen,
            data=self.data,
            samples=tuple(
                draw(
                    learned,
                    config.samples_per_class,
                    seed=config.sample_seed,
                    repeat=config.repeat_samples,
                )
            ),
            held_out=tuple(draw_held_out(kept_out, config.samples_per_class, config.sample_seed)),
        )


def _check_clip(training: PromptTraining, baseline: Prompts) -> NDArray[np.float32]:
    clip = Clip.load(training.clip)
    ClassTexts(clip, training.seen, training.config.vectors)
    check_input_size(clip.model.visual, training.input_size(clip.side))
    return text_vectors(clip, training.seen, baseline)
