"""Everything of a training of proposals that is checked and fixed before its first step.

Dimension key: K seen classes, D embedding.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.progress import Progress
from jobs.training_plan import (
    DATA_FILE,
    absolute,
    command_line,
    examine,
    labelled_images,
    read_classes,
    refuse_other_settings,
    seen_classes,
)
from pipeline import runtime
from pipeline.files import read_bytes
from pipeline.models.clip import Clip, ClipCard, ClipSource, text_vectors
from pipeline.models.embedded import EMBEDDED_PROPOSER
from pipeline.models.maskformer import (
    BackboneConfig,
    MaskFormerConfig,
    build_backbone,
    load_config,
)
from pipeline.models.model_directory import CONFIG_FILE
from pipeline.models.weight_cache import pinned
from pipeline.models.weights import sha256_of
from pipeline.prompts import Prompts, load_prompts
from pipeline.training.backbone_weights import load_backbone
from pipeline.training.labelled_images import Finding, LabelledImages
from schemas.errors import ModelError, SettingsError
from schemas.training_config import TrainingExecution, TrainProposalsConfig
from schemas.vocabulary import Vocabulary

_ARCHITECTURES: Final[Mapping[str, BackboneConfig]] = {
    "r50": BackboneConfig(kind="resnet", name="r50"),
    "r101c": BackboneConfig(kind="resnet", name="r101c"),
    "swin-tiny": BackboneConfig(kind="swin", name="swin-tiny"),
    "swin-small": BackboneConfig(kind="swin", name="swin-small"),
    "swin-base": BackboneConfig(kind="swin", name="swin-base"),
}
_TINY: Final = "tiny"


@dataclass(frozen=True)
class ProposalTrainingPlan:
    """The settings with what they name, checked; of models no more than the backbone is loaded."""

    config: TrainProposalsConfig
    vocabulary: Vocabulary
    data: LabelledImages
    prompts: Prompts
    clip: ClipSource
    clip_card: ClipCard
    structure: MaskFormerConfig

    @classmethod
    def of(cls, given: TrainProposalsConfig) -> "ProposalTrainingPlan":
        """Read and check what the settings name; raises SettingsError (or a kind of it)."""
        config = absolute(given)
        vocabulary = read_classes(config)
        data = labelled_images(config, vocabulary)
        clip = ClipSource.of(config.clip, pinned(config.clip_weights))
        card = clip.on_this_machine().describe()
        structure = _structure(config, card.embedding_dim)
        if config.crop_size % structure.size_divisibility:
            raise SettingsError(
                f"crop_size is {config.crop_size}; it must be a multiple of "
                f"{structure.size_divisibility}, to which the network's input is padded"
            )
        if config.backbone_weights is not None:
            load_backbone(build_backbone(structure.backbone)[0], config.backbone_weights)
        prompts = load_prompts(config.prompts)
        return cls(config, vocabulary, data, prompts, clip, card, structure)

    @property
    def seen(self) -> Vocabulary:
        """The classes that are learned, in the order of their positions."""
        return seen_classes(self.vocabulary, self.data)

    def model(self, num_images: int) -> MaskFormerConfig:
        """Return the structure with what is recorded of this training."""
        config = self.config
        command = command_line(("train", "proposals"), config)
        return self.structure.model_copy(
            update={
                "short_edge": config.short_edge,
                "long_edge": config.long_edge,
                "seen_classes": self.seen.names,
                "licence": config.licence,
                "provenance": f"{command}; segmill {version('segmill')}, "
                f"{num_images} images of {self.data.images}, data {self._data_hash()[:16]}, "
                f"seed {config.seed}",
            }
        )

    def _data_hash(self) -> str:
        return hashlib.sha256(read_bytes(str(self.config.output), DATA_FILE)).hexdigest()

    def text_vectors(self, progress: Progress) -> NDArray[np.float32]:
        """Return the unit text vectors (K, D) of the seen classes."""
        progress.say(f"text vectors of {self.data.num_seen} seen classes")
        return runtime.run_task(_text_vectors, self.clip, self.seen, self.prompts)

    def refuse_other_settings(self) -> None:
        """Raise SettingsError where the output is that of a training with other settings."""
        refuse_other_settings(str(self.config.output), self._deciding())

    def _deciding(self) -> dict[str, Any]:
        """Return the settings that decide what is learned, the class list, and what files hold."""
        execution = {*TrainingExecution.model_fields, "output"}
        settings = self.config.model_dump(mode="json", exclude=execution)
        return {
            **settings,
            "ignore_label": self.data.ignore_label,
            "classes": self.vocabulary.model_dump(mode="json")["classes"],
            "prompts_identity": list(self.prompts.identity),
            "clip_sha256": self.clip_card.weights_sha256,
        }

    def findings(self, progress: Progress) -> list[Finding]:
        """Read every pair once, on the whole cluster; a run that goes on knows the result."""
        output = str(self.config.output)
        return examine(self.config, output, self.data, self._deciding(), progress)


def _text_vectors(
    source: ClipSource, vocabulary: Vocabulary, prompts: Prompts
) -> NDArray[np.float32]:
    return text_vectors(Clip.load(source), vocabulary, prompts)


def _structure(config: TrainProposalsConfig, embedding_dim: int) -> MaskFormerConfig:
    """Return the structure of the network, whose query head fits the CLIP."""
    name = config.architecture
    if config.initial_weights is not None:
        structure = load_config(config.initial_weights)
        sha256_of(config.initial_weights)
        if structure.embedding_dim != embedding_dim:
            raise ModelError(
                f"initial_weights {config.initial_weights} has query embeddings of "
                f"{structure.embedding_dim} dimensions, clip {config.clip!r} has {embedding_dim}"
            )
        return structure
    if name in _ARCHITECTURES:
        return MaskFormerConfig(backbone=_ARCHITECTURES[name], embedding_dim=embedding_dim)
    if name != _TINY and Path(name).name != CONFIG_FILE:
        known = ", ".join((*_ARCHITECTURES, _TINY))
        raise ModelError(
            f"there is no architecture {name!r}; there are {known}, and paths of a {CONFIG_FILE}"
        )
    directory = EMBEDDED_PROPOSER if name == _TINY else Path(name).parent
    return load_config(directory).model_copy(update={"embedding_dim": embedding_dim})
