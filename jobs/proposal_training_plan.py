"""Everything of a training of proposals that is checked and fixed before its first step.

Dimension key: K seen classes, D embedding.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.progress import Progress
from pipeline import runtime
from pipeline.files import read_bytes, write_bytes
from pipeline.models.clip import Clip, ClipSource, text_vectors
from pipeline.models.embedded import EMBEDDED_PROPOSER
from pipeline.models.maskformer import BackboneConfig, MaskFormerConfig, load_config
from pipeline.models.model_directory import CONFIG_FILE
from pipeline.models.weights import sha256_of
from pipeline.prompts import Prompts, load_prompts
from pipeline.training.labelled_images import Finding, LabelledImages, Pair
from schemas.errors import ModelError, OutputError, SettingsError
from schemas.training_config import TrainingExecution, TrainProposalsConfig
from schemas.vocabulary import Vocabulary, read_vocabulary

DATA_FILE: Final = "data.json"  # what was learned from, and what was left out
SETTINGS_FILE: Final = "config.json"

_PAIRS_PER_TASK: Final = 64
_NAMED: Final = 5
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
    """The settings with what they name, checked; no model is loaded for it."""

    config: TrainProposalsConfig
    vocabulary: Vocabulary
    data: LabelledImages
    prompts: Prompts
    clip: ClipSource
    structure: MaskFormerConfig

    @classmethod
    def of(cls, given: TrainProposalsConfig) -> "ProposalTrainingPlan":
        """Read and check what the settings name; raises SettingsError (or a kind of it)."""
        config = _absolute(given)
        vocabulary = read_vocabulary(_vocabulary_file(config))
        data = LabelledImages.of(
            _directory(config, "images"),
            _directory(config, "masks"),
            vocabulary,
            config.ignore_label,
            config.max_image_pixels,
        )
        clip = ClipSource.of(config.clip, config.clip_weights)
        dim = clip.describe().embedding_dim
        structure = _structure(config, dim)
        if config.crop_size % structure.size_divisibility:
            raise SettingsError(
                f"crop_size is {config.crop_size}; it must be a multiple of "
                f"{structure.size_divisibility}, to which the network's input is padded"
            )
        if config.backbone_weights is not None:
            sha256_of(config.backbone_weights)
        return cls(config, vocabulary, data, load_prompts(config.prompts), clip, structure)

    @property
    def seen(self) -> Vocabulary:
        """The classes that are learned, in the order of their positions."""
        classes = zip(self.vocabulary.classes, self.data.seen, strict=True)
        return Vocabulary(classes=tuple(entry for entry, is_seen in classes if is_seen))

    def model(self, num_images: int) -> MaskFormerConfig:
        """Return the structure with what is recorded of this training."""
        config = self.config
        return self.structure.model_copy(
            update={
                "short_edge": config.short_edge,
                "long_edge": config.long_edge,
                "seen_classes": self.seen.names,
                "licence": config.licence,
                "provenance": f"{_command(config)}; segmill {version('segmill')}, "
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
        output = str(self.config.output)
        deciding = self._deciding()
        try:
            known = json.loads(read_bytes(output, SETTINGS_FILE))
        except FileNotFoundError:
            return
        except ValueError:
            raise OutputError(f"{output}/{SETTINGS_FILE} is no JSON; name a new output") from None
        others = [name for name in deciding if known.get(name) != deciding[name]]
        if others:
            told = ", ".join(f"{name} {known.get(name)!r}" for name in others[:_NAMED])
            raise SettingsError(
                f"{output} is the output of a training with other settings ({told}); give those "
                "to go on with it, or name a new output"
            )

    def _deciding(self) -> dict[str, Any]:
        """Return the settings that decide what is learned, and all of the class list."""
        execution = {*TrainingExecution.model_fields, "output"}
        settings = self.config.model_dump(mode="json", exclude=execution)
        return {**settings, "classes": self.vocabulary.model_dump(mode="json")["classes"]}

    def findings(self, progress: Progress) -> list[Finding]:
        """Read every pair once, on the whole cluster; a run that goes on knows the result.

        Settings and findings are written once the data are known to do.
        """
        output = str(self.config.output)
        try:
            known = json.loads(read_bytes(output, DATA_FILE))
        except FileNotFoundError:
            pass
        else:
            return [Finding(Pair(image, mask), *told) for image, mask, *told in known["pairs"]]
        pairs = self.data.pairs(self.config.extensions)
        progress.say(f"reading {len(pairs)} images and their label maps once")
        parts = [
            pairs[start : start + _PAIRS_PER_TASK]
            for start in range(0, len(pairs), _PAIRS_PER_TASK)
        ]
        found = [
            finding for part in runtime.map_tasks(self.data.examine, parts) for finding in part
        ]
        usable(self.config, found)  # refuses before anything is recorded
        settings = json.dumps(self._deciding(), indent=2)
        write_bytes(output, SETTINGS_FILE, settings.encode())
        rows = [[f.pair.image, f.pair.mask, f.reason, f.detail] for f in found]
        content = {"images": str(self.data.images), "masks": str(self.data.masks), "pairs": rows}
        write_bytes(output, DATA_FILE, json.dumps(content).encode())
        return found


def usable(config: TrainProposalsConfig, findings: Sequence[Finding]) -> list[Pair]:
    """Return what can be learned from; raises SettingsError when too little can."""
    bad = [finding for finding in findings if finding.is_bad]
    told = "; ".join(f"{f.pair.image}: {f.reason} ({f.detail})" for f in bad[:_NAMED])
    if len(bad) > config.max_bad_fraction * len(findings):
        raise SettingsError(
            f"{len(bad)} of {len(findings)} images cannot be learned from, more than "
            f"max_bad_fraction {config.max_bad_fraction}: {told}"
        )
    pairs = [finding.pair for finding in findings if not finding.reason]
    if not pairs:
        raise SettingsError(
            f"none of {len(findings)} label maps has a pixel of a seen class; look at the seen "
            "flags of the vocabulary, and at ignore_label"
        )
    return pairs


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


def _directory(config: TrainProposalsConfig, kind: str) -> Path:
    given: Path | None = getattr(config, kind)
    if given is not None:
        return given
    if config.dataset is None:
        raise SettingsError(f"give dataset, or {kind}")
    return config.dataset / kind / config.split


def _vocabulary_file(config: TrainProposalsConfig) -> Path:
    if config.vocabulary is not None:
        return config.vocabulary
    if config.dataset is None:
        raise SettingsError("give dataset, or vocabulary")
    return config.dataset / "vocabulary.yaml"


def _absolute(config: TrainProposalsConfig) -> TrainProposalsConfig:
    """Return settings that mean the same in workers, whose working directory is another."""
    paths = {name: value.absolute() for name, value in config if isinstance(value, Path)}
    return config.model_copy(update=paths)


def _command(config: TrainProposalsConfig) -> str:
    """Return the command line of what differs from the defaults."""
    words = ["segmill", "train", "proposals"]
    for name, value in config.model_dump(mode="json", exclude_defaults=True).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
            continue
        for item in value if isinstance(value, list) else [value]:
            words += [flag, str(item)]
    return shlex.join(words)
