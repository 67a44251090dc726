"""Everything of a self-training that is checked and fixed before any work starts."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.annotation_plan import AnnotationPlan, recorded_settings
from jobs.proposal_training_plan import ProposalTrainingPlan
from jobs.training_plan import SETTINGS_FILE, absolute, labelled_images, refuse_other_settings
from pipeline.dataset import read_manifest
from pipeline.datasets.layout import VOCABULARY_FILE, vocabulary_text
from pipeline.evaluation.kept import require_kept
from pipeline.files import write_bytes
from pipeline.metrics import truth_ignore
from pipeline.models.embedded import EMBEDDED_PROPOSER
from pipeline.models.weight_cache import local_copy
from pipeline.pseudo_labels import PseudoLabelSettings
from pipeline.sources import Listing
from pipeline.storage import hide_secrets
from pipeline.training.labelled_images import LabelledImages
from pipeline.training.proposal_loop import PROPOSER
from pipeline.training.pseudo_set import SPLIT
from pipeline.truth import Truths
from schemas.annotate_config import AnnotateConfig
from schemas.errors import ModelError, SettingsError, VocabularyError
from schemas.manifest import Manifest
from schemas.self_training_config import PseudoLabelConfig, TrainSelfTrainingConfig
from schemas.training_config import (
    ProposalTrainingSettings,
    TrainingDataSettings,
    TrainingExecution,
    TrainProposalsConfig,
)
from schemas.vocabulary import Vocabulary, VocabularyClass, read_vocabulary

PSEUDO: Final = "pseudo"
TRAINING: Final = "training"
BEFORE: Final = "before"
AFTER: Final = "after"
LABELS_VOCABULARY: Final = "labels_vocabulary.yaml"

_MASKFORMER: Final = "maskformer"
_NAMED: Final = 5
# Of a run, these decide no label; they are the self-training's own where it annotates.
_OWN: Final = ("address", "lock_ttl_s", "extensions")


@dataclass(frozen=True)
class SelfTrainingPlan:
    """The settings with what they name, checked; no model is loaded for it."""

    config: TrainSelfTrainingConfig
    manifest: Manifest
    annotation: AnnotationPlan  # how the dataset was made; its output is the dataset
    data: LabelledImages
    eval_images: Path
    eval_masks: Path

    @classmethod
    def of(cls, given: TrainSelfTrainingConfig) -> "SelfTrainingPlan":
        """Read and check what the settings name; raises SettingsError (or a kind of it)."""
        config = _absolute(given)
        manifest = read_manifest(config.labels, config.version)
        require_kept(config.labels, manifest)
        vocabulary = _vocabulary(config, manifest)
        data = labelled_images(config, vocabulary)
        eval_images = _compared_on(config, "images")
        eval_masks = _compared_on(config, "masks")
        for directory in (data.images, data.masks, eval_images, eval_masks):
            if not directory.is_dir():
                raise SettingsError(f"there is no directory {directory}")
        annotation = _annotation(config, manifest)
        return cls(config, manifest, annotation, data, eval_images, eval_masks)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes, with the seen flags of the truth."""
        return self.annotation.vocabulary

    @property
    def pseudo_directory(self) -> Path:
        """Where the pseudo-label set is."""
        return self.config.output / PSEUDO

    @property
    def ignore(self) -> int:
        """What pseudo-label maps hold where a pixel has no label."""
        return truth_ignore(len(self.vocabulary))

    @property
    def pseudo_settings(self) -> PseudoLabelSettings:
        """Rules of the labels; rejected pixels are ignored (the reference's are not, B-10)."""
        config = self.config
        return PseudoLabelSettings(config.prior, config.reject_threshold, self.ignore)

    def training(self) -> TrainProposalsConfig:
        """Return the settings of the second round: seen and pseudo-labelled classes are learned."""
        config, labelling = self.config, self.annotation.config
        shared = {
            name: getattr(config, name)
            for name in ProposalTrainingSettings.model_fields
            if name not in TrainingDataSettings.model_fields
        }
        limits = ("extensions", "max_image_pixels", "max_bad_fraction")
        short_edge, long_edge = self.annotation.edges
        return TrainProposalsConfig(
            **shared,
            **{name: getattr(config, name) for name in limits},
            **self._start(),
            dataset=self.pseudo_directory,
            split=SPLIT,
            vocabulary=self.pseudo_directory / VOCABULARY_FILE,
            ignore_label=self.ignore,
            clip=labelling.clip,
            clip_weights=labelling.clip_weights,
            prompts=labelling.prompts,
            output=config.output / TRAINING,
            licence=self.annotation.proposer.licence or "unknown",
            short_edge=short_edge,
            long_edge=long_edge,
        )

    def _start(self) -> dict[str, Any]:
        config, labelling = self.config, self.annotation.config
        if config.architecture is not None:
            return {
                "architecture": config.architecture,
                "backbone_weights": config.backbone_weights,
            }
        if config.initial_weights is not None:
            return {"initial_weights": config.initial_weights}
        if labelling.proposer != _MASKFORMER:
            raise ModelError(
                f"proposer {labelling.proposer!r} of {hide_secrets(self.config.labels)} is no "
                "MaskFormer to go on from; give initial_weights or an architecture"
            )
        weights = local_copy(labelling.proposer_weights)
        return {"initial_weights": Path(weights).absolute() if weights else EMBEDDED_PROPOSER}

    def comparison(self, name: str) -> AnnotateConfig:
        """Return how the images to compare on are labelled BEFORE and AFTER."""
        changed: dict[str, Any] = {
            "source": str(self.eval_images),
            "output": str(self.config.output / name),
            "keep_embeddings": None,
            **{field: getattr(self.config, field) for field in _OWN},
        }
        if name == AFTER:
            changed |= {
                "proposer": _MASKFORMER,
                "proposer_weights": str(self.config.output / TRAINING / PROPOSER),
            }
            if self.config.ensemble_weight_after is not None:
                changed["ensemble_weight"] = self.config.ensemble_weight_after
        return self.annotation.config.model_copy(update=changed)

    def begin(self) -> None:
        """Refuse what cannot be meant, and mark the output as of these settings.

        Raises SettingsError where it is of others or there is nothing to compare on, and what the
        training would raise.
        """
        output = str(self.config.output)
        refuse_other_settings(output, self._deciding())
        self._refuse_nothing_to_compare_on()
        write_bytes(output, LABELS_VOCABULARY, vocabulary_text(self.vocabulary).encode())
        # Without seen flags: all classes are learned now.
        learned = vocabulary_text(unflagged(self.vocabulary)).encode()
        write_bytes(output, f"{PSEUDO}/{VOCABULARY_FILE}", learned)
        ProposalTrainingPlan.of(self.training())  # whose images are not there yet
        write_bytes(output, SETTINGS_FILE, json.dumps(self._deciding(), indent=2).encode())

    def _refuse_nothing_to_compare_on(self) -> None:
        """Raise SettingsError (or a kind of it) unless there are images with a truth."""
        listing = Listing(str(self.eval_images), self.config.extensions)
        uris = (uri for table in listing for uri in table["uri"].to_pylist())
        if not Truths.find(str(self.eval_masks)).paired(uris):
            raise SettingsError(f"no image of {self.eval_images} has a truth in {self.eval_masks}")

    def _deciding(self) -> dict[str, Any]:
        """Return all that decides the result, as plain values."""
        execution = {*TrainingExecution.model_fields, "output", "version"}
        settings = self.config.model_dump(mode="json", exclude=execution)
        made = {"labels_version": self.manifest.version, "labels_run": self.manifest.run_id}
        classes = self.vocabulary.model_dump(mode="json")["classes"]
        return {**settings, **made, "classes": classes, "ignore_label": self.data.ignore_label}

    def pseudo_facts(self) -> Mapping[str, Any]:
        """Return what decides the pseudo labels."""
        names = (*PseudoLabelConfig.model_fields, "labels_version", "labels_run", "classes")
        deciding = self._deciding()
        return {
            **{name: deciding[name] for name in names},
            "images": str(self.data.images),
            "masks": str(self.data.masks),
        }


def _absolute(config: TrainSelfTrainingConfig) -> TrainSelfTrainingConfig:
    """Return settings that mean the same in workers, whose working directory is another."""
    if "://" in config.labels:
        return absolute(config)
    labels = os.path.abspath(os.path.expanduser(config.labels))
    return absolute(config.model_copy(update={"labels": labels}))


def _compared_on(config: TrainSelfTrainingConfig, kind: str) -> Path:
    given: Path | None = getattr(config, f"eval_{kind}")
    if given is not None:
        return given
    if config.dataset is None:
        raise SettingsError(f"give dataset, or eval_{kind}")
    return config.dataset / kind / config.eval_split


def _vocabulary(config: TrainSelfTrainingConfig, manifest: Manifest) -> Vocabulary:
    """Return the dataset's classes; raises VocabularyError unless the truth has the same."""
    file = config.vocabulary or (config.dataset or Path()) / VOCABULARY_FILE
    truth, labels = read_vocabulary(file), manifest.vocabulary
    shown = hide_secrets(config.labels)
    if truth.names != labels.names:
        pairs = zip(truth.names, labels.names, strict=False)
        differ = next((pair for pair in pairs if pair[0] != pair[1]), None)
        told = f"{differ[0]!r} is {differ[1]!r} there" if differ else "one has more than the other"
        raise VocabularyError(
            f"{file} has {len(truth)} classes, {shown} was labelled with {len(labels)} others or "
            f"in another order ({told}); labels and maps must count the same classes: annotate "
            f"with {file}"
        )
    if truth.seen is not None and labels.seen is not None and truth.seen != labels.seen:
        flags = zip(truth.names, truth.seen, labels.seen, strict=True)
        named = [name for name, one, other in flags if one != other]
        raise VocabularyError(
            f"{file} and {shown} do not agree which classes are seen "
            f"({', '.join(named[:_NAMED])}{', ...' if len(named) > _NAMED else ''})"
        )
    if labels.seen is None or all(labels.seen) or not any(labels.seen):
        raise VocabularyError(
            f"{shown} was labelled without both seen and unseen classes, but seen ones are learned "
            f"from the truth and unseen ones from the labels; flag them in {file} and annotate "
            "with it"
        )
    return labels


def _annotation(config: TrainSelfTrainingConfig, manifest: Manifest) -> AnnotationPlan:
    """Return how the dataset was made; raises ModelError unless it can be made so again."""
    # The file that it was made with may be gone; the manifest has what it said.
    file = config.output / LABELS_VOCABULARY
    changes = {"vocabulary": file, "output": config.labels}
    made = recorded_settings(config.labels, manifest, changes)
    if made.oracle_truth is not None:
        raise SettingsError(
            f"{hide_secrets(config.labels)} holds labels of an oracle, which knows the truth; "
            "annotate without oracle_truth"
        )
    plan = AnnotationPlan.of(made, manifest.vocabulary)
    if plan.fingerprints.label != manifest.fingerprint:
        today = json.loads(json.dumps(plan.deciding))
        changed = [name for name in today if manifest.models.get(name) != today[name]]
        raise ModelError(
            f"{hide_secrets(config.labels)} cannot be labelled again as it was: "
            f"{', '.join(changed)} changed since; annotate it anew"
        )
    return plan


def unflagged(vocabulary: Vocabulary) -> Vocabulary:
    """Return the classes without seen flags: a training then learns all of them."""
    return Vocabulary(
        classes=tuple(
            VocabularyClass(name=entry.name, synonyms=entry.synonyms)
            for entry in vocabulary.classes
        )
    )
