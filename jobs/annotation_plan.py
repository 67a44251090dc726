"""Everything of an annotation run that is checked and fixed before any work starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from pipeline.fingerprints import Fingerprints
from pipeline.models import (
    CLASSIFIERS,
    ClassifierEntry,
    ProposerCard,
    find_classifier,
    find_proposer,
    refuse_unseen,
)
from pipeline.models.clip import ClipCard, ClipSource
from pipeline.models.weight_cache import local_copy, pinned
from pipeline.models.weights import sha256_of
from pipeline.prompts import Prompts, load_prompts
from pipeline.pruning import PruneSettings
from pipeline.secrets import hide_secrets
from pipeline.sources import Listing, ListRules
from pipeline.truth import Truths
from pipeline.web import WebAccess
from schemas.annotate_config import AnnotateConfig, ClassifierSettings, ExecutionSettings
from schemas.annotation import SCHEMA_VERSION
from schemas.errors import ModelError, OutputError
from schemas.manifest import Manifest
from schemas.vocabulary import Vocabulary, read_vocabulary

_WEIGHTS: Final = ("proposer_weights", "clip_weights")
_PRUNING: Final = ("prune_min_area", "prune_min_stability", "prune_min_won")
# Settings of the machines that a version was made on; mask_precision is not, it decides labels.
_OF_MACHINES: Final = frozenset(ExecutionSettings.model_fields) - {"mask_precision"}


@dataclass(frozen=True)
class AnnotationPlan:
    """The settings with what they name: vocabulary, prompts, and what is known of the models."""

    config: AnnotateConfig
    vocabulary: Vocabulary
    query_prompts: Prompts
    region_prompts: Prompts
    proposer: ProposerCard
    clip: ClipSource
    clip_card: ClipCard

    @classmethod
    def of(cls, config: AnnotateConfig, vocabulary: Vocabulary | None = None) -> "AnnotationPlan":
        """Read and check what the settings name, loading no model.

        A `vocabulary` takes the place of the file that the settings name. Raises SettingsError (or
        a kind of it).
        """
        vocabulary = vocabulary or read_vocabulary(config.vocabulary)
        config = config.model_copy(
            update={name: pinned(getattr(config, name)) for name in _WEIGHTS}
        )
        query_prompts = load_prompts(config.prompts)
        region_prompts = load_prompts(config.region_prompts or config.prompts)
        entry = find_proposer(config.proposer, config.proposer_modules)
        proposer = entry.describe(local_copy(config.proposer_weights))
        refuse_unseen(config.proposer, proposer, vocabulary)
        if config.proposer_precision != "fp32" and entry.lower is None:
            raise ModelError(
                f"proposer_precision is {config.proposer_precision}, but proposer "
                f"{config.proposer!r} has no network that computes in half precision; it must be "
                "fp32"
            )
        classifier = find_classifier(config.classifier)
        _refuse_settings_of_others(config, classifier)
        clip = ClipSource.of(
            config.clip, config.clip_weights, config.clip_precision, config.crop_side
        )
        clip_here = clip.on_this_machine()
        clip_card = clip_here.describe()
        classifier.check(clip_here, config)
        if proposer.embedding_dim not in (None, clip_card.embedding_dim):
            raise ModelError(
                f"proposer {config.proposer!r} has query embeddings of {proposer.embedding_dim} "
                f"dimensions, clip {config.clip!r} has {clip_card.embedding_dim}; they must be "
                "equal"
            )
        if proposer.embedding_dim is None and not config.ensemble:
            raise ModelError(
                f"ensemble is off, but proposer {config.proposer!r} has no query scores of its own"
            )
        if config.oracle_truth is not None and not proposer.proposes_masks:
            raise ModelError(
                f"oracle_truth labels proposals, but proposer {config.proposer!r} makes none; take "
                "one that proposes masks"
            )
        if config.keep_embeddings == "compact" and not proposer.proposes_masks:
            raise ModelError(
                f"compact embeddings hold masks, but proposer {config.proposer!r} makes none; take "
                "one that proposes masks, or keep exact embeddings"
            )
        pruned_by = [name for name in (*_PRUNING, "prune_iou") if getattr(config, name) is not None]
        if pruned_by and not proposer.proposes_masks:
            raise ModelError(
                f"{pruned_by[0]} is of proposals, but proposer {config.proposer!r} makes none"
            )
        if config.oracle_truth is not None:
            Truths.find(config.oracle_truth)
        return cls(config, vocabulary, query_prompts, region_prompts, proposer, clip, clip_card)

    def listing(self) -> Listing:
        """Return the images of the source, to be read."""
        config = self.config
        rules = ListRules(WebAccess.of(config), config.trust_lists, config.image_column)
        return Listing(config.source, config.extensions, rules)

    @property
    def edges(self) -> tuple[int, int]:
        """Short and long edge of the images that the proposer sees."""
        short = self.config.short_edge or self.proposer.short_edge
        # Without a limit of its own, a larger short edge keeps the proposer's proportion.
        proportion = self.proposer.long_edge / self.proposer.short_edge
        return short, self.config.long_edge or max(short, round(short * proportion))

    @property
    def asks_clip(self) -> bool:
        """Whether regions are classified at all."""
        return self.config.ensemble and self.config.oracle_truth is None

    @property
    def pruning(self) -> PruneSettings | None:
        """Which proposals are dropped; None: none, whatever they are."""
        limits = [getattr(self.config, name) for name in _PRUNING]
        if limits == [None] * len(limits):
            return None
        return PruneSettings(self.config.mask_threshold, *limits)

    @property
    def _limits(self) -> dict[str, Any]:
        limits = (
            "max_image_bytes max_image_pixels max_image_frames max_decode_seconds max_decode_mb "
            "allow_private_addresses"
        )
        return {**self._settings(limits), "schema_version": SCHEMA_VERSION}

    @property
    def _proposal(self) -> dict[str, Any]:
        return {
            **self._settings("proposer mask_precision jpeg_draft"),
            "schema_version": SCHEMA_VERSION,
            "edges": self.edges,
            "proposer_weights_sha256": self.proposer.weights_sha256,
            **({"mask_threshold": self.config.mask_threshold} if self.pruning else {}),
            **self._given(_PRUNING),
            **self._proposer_precision,
        }

    @property
    def _proposer_precision(self) -> dict[str, Any]:
        """The setting where it changes anything: older hashes stay as they were."""
        precision = self.config.proposer_precision
        return {} if precision == "fp32" else {"proposer_precision": precision}

    @property
    def _clip(self) -> dict[str, Any]:
        sha256 = self.clip_card.weights_sha256
        named: list[str | None] | None = [self.clip.name, self.clip.weights]
        if sha256 is not None:  # of a folder with its config, or of a file, which has none
            named = None if self.clip.weights is None else [self.clip.name]
        return {
            **self._settings("clip_precision crop_side"),
            "clip": named,
            "clip_weights_sha256": sha256,
        }

    @property
    def _embedding(self) -> dict[str, Any]:
        if not self.asks_clip:
            return {}
        deciding = find_classifier(self.config.classifier).deciding
        return {"classifier": self.config.classifier, **self._given(deciding), **self._clip}

    @property
    def _label(self) -> dict[str, Any]:
        fusion = "ensemble ensemble_weight oracle_truth invalid_proposals min_score logit_scale"
        return {
            **self._settings(fusion),
            **self._truth,
            **self._clip,
            "query_prompts": self.query_prompts.identity,
            "region_prompts": self.region_prompts.identity,
            "vocabulary": self.vocabulary.model_dump(),
        }

    @cached_property
    def _truth(self) -> dict[str, Any]:
        """The maps of the truth, where it decides: they may be corrected in their place."""
        truth = self.config.oracle_truth
        return {} if truth is None else {"oracle_truth_sha256": sha256_of(Path(truth))}

    @property
    def deciding(self) -> dict[str, Any]:
        """All that decides a label: two runs that agree in it give equal labels."""
        return {**self._proposal, **self._embedding, **self._label}

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """Hashes of what each stage depends on."""
        return Fingerprints.of(self._limits, self._proposal, self._embedding, self._label)

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        """Return settings but those that are off: older hashes stay as they were."""
        values = {name: getattr(self.config, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def _settings(self, names: str) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in names.split()}


def recorded_settings(
    dataset: str, manifest: Manifest, changes: Mapping[str, Any]
) -> AnnotateConfig:
    """Return the settings that made a version, with changes, to label with them anywhere.

    Those of its machines are left out. Raises OutputError where the settings mean nothing to this
    version of Segmill.
    """
    recorded = {name: manifest.config[name] for name in manifest.config.keys() - _OF_MACHINES}
    try:
        return AnnotateConfig.model_validate({**recorded, **changes})
    except ValidationError as error:
        named = ", ".join(
            str(problem["loc"][0]) if problem["loc"] else problem["msg"]
            for problem in error.errors()
        )
        raise OutputError(
            f"{hide_secrets(dataset)} was made by another version of segmill, whose settings "
            f"({named}) mean nothing to this one; annotate it anew"
        ) from None


def _refuse_settings_of_others(config: AnnotateConfig, classifier: ClassifierEntry) -> None:
    """Raise ModelError where a setting is given that the classifier has no use for."""
    for setting, field in ClassifierSettings.model_fields.items():
        value = getattr(config, setting)
        if setting in classifier.deciding or value == field.default:
            continue
        # Asked only now: the others import libraries that this run may have no use for.
        users = [name for name, entry in CLASSIFIERS.items() if setting in entry().deciding]
        if users:
            raise ModelError(
                f"{setting} is {value}, but classifier {config.classifier!r} has no use for it; it "
                f"is of {' and '.join(users)}"
            )
