"""`segmill annotate`: from a source of images to a published dataset version."""

import hashlib
import json
import logging
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs.progress import Progress, Silent
from pipeline import dataset, runtime
from pipeline.models import ProposerCard, find_classifier, find_proposer
from pipeline.models.clip import Clip, ClipCard, ClipSource
from pipeline.models.crops import CropSettings
from pipeline.models.device import pick_device
from pipeline.prompts import load_templates, text_classifier
from pipeline.sources import Inventory, take_inventory
from pipeline.stages.classify import Classify
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.propose import Propose
from pipeline.storage import hide_secrets
from schemas.annotation import SCHEMA_VERSION
from schemas.config import AnnotateConfig
from schemas.errors import ModelError, SegmillError
from schemas.manifest import Counts, DataFile, Manifest
from schemas.vocabulary import Vocabulary, read_vocabulary

_RECORDED_PACKAGES = ("segmill", "ray", "torch", "open_clip_torch", "transformers", "pyarrow")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotateResult:
    """What a run did; `too_many_bad` is what turns the exit code to 1."""

    output: str
    version: int
    run_id: str
    counts: Counts
    ignored: int  # files passed over for their extension
    repeated: int  # uris given more than once
    seconds: float
    too_many_bad: bool


@dataclass(frozen=True)
class _Plan:
    """Everything that is checked and fixed before any work starts."""

    config: AnnotateConfig
    vocabulary: Vocabulary
    templates: tuple[str, ...]
    proposer: ProposerCard
    clip: ClipSource
    clip_card: ClipCard
    inventory: Inventory
    run_id: str

    @property
    def deciding(self) -> dict[str, Any]:
        """All that decides a label: two runs that agree in it give equal labels."""
        settings = (
            "proposer classifier mask_threshold mask_fill mask_expand_ratio mask_matting "
            "ensemble ensemble_weight min_score mask_precision"
        )
        return {
            **{name: getattr(self.config, name) for name in settings.split()},
            "schema_version": SCHEMA_VERSION,
            "edges": self.edges,
            "proposer_weights_sha256": self.proposer.weights_sha256,
            "clip": None if self.clip_card.weights_sha256 else [self.clip.name, self.clip.weights],
            "clip_weights_sha256": self.clip_card.weights_sha256,
            "templates": self.templates,
            "vocabulary": self.vocabulary.model_dump(),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of `deciding`."""
        return hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()

    @property
    def edges(self) -> tuple[int, int]:
        """Short and long edge of the images that the proposer sees."""
        short = self.config.short_edge or self.proposer.short_edge
        # Without a limit of its own, a larger short edge keeps the proposer's proportion.
        proportion = self.proposer.long_edge / self.proposer.short_edge
        return short, self.config.long_edge or max(short, round(short * proportion))


def annotate(config: AnnotateConfig, progress: Progress | None = None) -> AnnotateResult:
    """Label every image of the source and publish the result as the next version.

    Raises SettingsError (or a kind of it) for wrong settings before any model is loaded, and
    PublicationError when another run published the same version meanwhile.
    """
    started = time.monotonic()
    progress = progress or Silent()
    with progress:
        plan = _check(config, progress)
        previous = dataset.newest_version(config.output)
        resolved = json.dumps(plan.config.model_dump(mode="json"), indent=2)
        # Also shows that the output can be written, before anything is loaded.
        dataset.write_bytes(config.output, f"_runs/{plan.run_id}/config.json", resolved.encode())
        files = _run(plan, progress)
        counts = _account(plan.inventory, files)
        manifest = _manifest(plan, previous + 1, files, counts)
        dataset.publish(config.output, manifest)
    return AnnotateResult(
        output=hide_secrets(config.output),
        version=manifest.version,
        run_id=plan.run_id,
        counts=counts,
        ignored=plan.inventory.ignored,
        repeated=plan.inventory.repeated,
        seconds=time.monotonic() - started,
        too_many_bad=counts.quarantined > config.max_bad_fraction * counts.inventory,
    )


def _check(config: AnnotateConfig, progress: Progress) -> _Plan:
    vocabulary = read_vocabulary(config.vocabulary)
    templates = load_templates(config.prompts)
    proposer = find_proposer(config.proposer).describe(config.proposer_weights)
    find_classifier(config.classifier)
    clip = ClipSource.of(config.clip, config.clip_weights)
    clip_card = clip.describe()
    if proposer.embedding_dim not in (None, clip_card.embedding_dim):
        raise ModelError(
            f"proposer {config.proposer!r} has query embeddings of {proposer.embedding_dim} "
            f"dimensions, clip {config.clip!r} has {clip_card.embedding_dim}; they must be equal"
        )
    if proposer.embedding_dim is None and not config.ensemble:
        raise ModelError(
            f"ensemble is off, but proposer {config.proposer!r} has no query scores of its own"
        )
    progress.say(f"listing {hide_secrets(config.source)}")
    inventory = take_inventory(config.source, config.extensions)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return _Plan(config, vocabulary, templates, proposer, clip, clip_card, inventory, run_id)


def _run(plan: _Plan, progress: Progress) -> list[DataFile]:
    config = plan.config
    actors = config.propose_actors + config.classify_actors
    # On one machine without GPUs the pools share its cores; on a cluster an actor takes one.
    actor_cpus = max(1, runtime.cores() // actors) if config.address == "local" else 1
    with runtime.cluster(config.address, config.object_store_mb, actors * actor_cpus):
        propose_gpus = runtime.gpus_per_actor(config.propose_gpus)
        classify_gpus = runtime.gpus_per_actor(config.classify_gpus)
        progress.say(f"prompting CLIP with {len(plan.vocabulary)} classes")
        text_KD = runtime.run_task(
            _encode_vocabulary, plan.clip, plan.vocabulary, plan.templates, num_gpus=classify_gpus
        )
        fetch = FetchDecode(*plan.edges, config.max_image_bytes, config.max_image_pixels)
        propose = Propose(
            config.proposer, config.proposer_weights, plan.proposer.divisor, config.mask_precision
        )
        classify = Classify(
            classifier=config.classifier,
            clip=plan.clip,
            crops=CropSettings(
                config.mask_threshold,
                config.mask_fill,
                config.mask_expand_ratio,
                config.mask_matting,
            ),
            crop_batch=config.crop_batch,
            names=plan.vocabulary.names,
            seen=plan.vocabulary.seen,
            text_KD=text_KD,
            ensemble=config.ensemble,
            ensemble_weight=config.ensemble_weight,
            min_score=config.min_score,
            divisor=plan.proposer.divisor,
            precision=config.mask_precision,
            fingerprint=plan.fingerprint,
            run_id=plan.run_id,
        )
        total = len(plan.inventory.images)
        progress.start([fetch.name, propose.name, classify.name, "write"], total)
        return runtime.run_pipeline(
            plan.inventory.images,
            [
                runtime.Placement(fetch, runtime.ROWS_PER_BLOCK),
                runtime.Placement(
                    propose, config.propose_batch, config.propose_actors, propose_gpus, actor_cpus
                ),
                runtime.Placement(
                    classify,
                    config.classify_batch,
                    config.classify_actors,
                    classify_gpus,
                    actor_cpus,
                ),
            ],
            config.output,
            plan.run_id,
            config.rows_per_file,
            progress.update,
        )


def _encode_vocabulary(clip: ClipSource, vocabulary: Vocabulary, templates: tuple[str, ...]) -> Any:
    return text_classifier(Clip.load(clip, pick_device()).encode_text, vocabulary, templates)


def _account(inventory: Inventory, files: list[DataFile]) -> Counts:
    """Add up the files; raises SegmillError unless every image of the inventory ended in one."""
    labelled = sum(file.labelled for file in files)
    quarantined = sum(file.quarantined for file in files)
    reasons: Counter[str] = Counter()
    for file in files:
        reasons.update(file.reasons)
    total = len(inventory.images)
    if labelled + quarantined != total:
        raise SegmillError(
            f"{labelled} labelled + {quarantined} quarantined images do not make the "
            f"{total} of the inventory; nothing was published"
        )
    return Counts(
        inventory=total,
        labelled=labelled,
        quarantined=quarantined,
        reasons=dict(reasons.most_common()),
    )


def _manifest(plan: _Plan, number: int, files: list[DataFile], counts: Counts) -> Manifest:
    return Manifest(
        version=number,
        created=datetime.now(UTC),
        run_id=plan.run_id,
        fingerprint=plan.fingerprint,
        source=hide_secrets(plan.config.source),
        vocabulary=plan.vocabulary,
        counts=counts,
        images=tuple(sorted(files, key=lambda file: file.path)),
        config=plan.config.model_dump(mode="json"),
        models={"proposer_licence": plan.proposer.licence, **plan.deciding},
        software={package: version(package) for package in _RECORDED_PACKAGES},
    )
