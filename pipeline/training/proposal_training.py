"""A training of proposals as its workers get it, and where its random numbers come from.

Dimension key: K seen classes, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.models.maskformer import MaskFormerConfig
from pipeline.training.augmentation import Augmentation
from pipeline.training.labelled_images import LabelledImages, Pair
from pipeline.training.schedule import PaperOptimiser
from pipeline.training.set_loss import LossSettings
from schemas.training_config import TrainProposalsConfig

# What a random stream is for: none shares its seed with another.
INITIAL: Final = 0
VIEWS: Final = 1
DROPOUT: Final = 2


@dataclass(frozen=True, eq=False)
class ProposalTraining:
    """A training as its workers get it: settings, and what was found out before."""

    config: TrainProposalsConfig
    model: MaskFormerConfig
    text_KD: NDArray[np.float32]  # unit vectors of the seen classes
    data: LabelledImages
    pairs: tuple[Pair, ...]  # all that can be learned from

    @property
    def output(self) -> str:
        """The directory, as `pipeline.files` takes it."""
        return str(self.config.output)

    @property
    def loss(self) -> LossSettings:
        """Weights of the losses."""
        config = self.config
        return LossSettings(
            config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight
        )

    @property
    def optimiser(self) -> PaperOptimiser:
        """Rates and limits."""
        config = self.config
        return PaperOptimiser(
            config.learning_rate, config.backbone_factor, config.weight_decay, config.max_norm
        )

    @property
    def augmentation(self) -> Augmentation:
        """How views are made."""
        config = self.config
        return Augmentation(
            config.short_edges, config.max_long_edge, config.crop_size,
            config.colour_jitter, config.flip,
        )  # fmt: skip


def seed_of(*place: int) -> int:
    """Return a seed of 64 bits for a place in the run."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
