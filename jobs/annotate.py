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

import numpy as np
from numpy.typing import NDArray

from jobs.progress import Progress, Silent
from pipeline import dataset, runtime
from pipeline.fusion import LOGIT_SCALE
from pipeline.models import ProposerCard, find_classifier, find_proposer
from pipeline.models.clip import Clip, ClipCard, ClipSource, text_vectors
from pipeline.models.crops import CropSettings
from pipeline.models.device import pick_device
from pipeline.prompts import Prompts, load_prompts
from pipeline.sources import Inventory, take_inventory
from pipeline.stages.classify import Classify
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.propose import Propose
from pipeline.storage import hide_secrets
from pipeline.truth import Truths
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
    query_prompts: Prompts
    region_prompts: Prompts
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
            "ensemble ensemble_weight oracle_truth invalid_proposals min_score mask_precision "
            "clip_precision crop_side logit_scale"
        )
        return {
            **{name: getattr(self.config, name) for name in settings.split()},
            "schema_version": SCHEMA_VERSION,
            "edges": self.edges,
            "proposer_weights_sha256": self.proposer.weights_sha256,
            "clip": None if self.clip_card.weights_sha256 else [self.clip.name, self.clip.weights],
            "clip_weights_sha256": self.clip_card.weights_sha256,
            "query_prompts": self.query_prompts.identity,
            "region_prompts": self.region_prompts.identity,
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
    query_prompts = load_prompts(config.prompts)
    region_prompts = load_prompts(config.region_prompts or config.prompts)
    proposer = find_proposer(config.proposer).describe(config.proposer_weights)
    find_classifier(config.classifier)
    clip = ClipSource.of(config.clip, config.clip_weights, config.clip_precision, config.crop_side)
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
    if config.oracle_truth is not None and not proposer.proposes_masks:
        raise ModelError(
            f"oracle_truth labels proposals, but proposer {config.proposer!r} makes none; take one "
            "that proposes masks"
        )
    if config.oracle_truth is not None:
        Truths.find(config.oracle_truth)
    progress.say(f"listing {hide_secrets(config.source)}")
    inventory = take_inventory(config.source, config.extensions)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return _Plan(
        config,
        vocabulary,
        query_prompts,
        region_prompts,
        proposer,
        clip,
        clip_card,
        inventory,
        run_id,
    )


def _run(plan: _Plan, progress: Progress) -> list[DataFile]:
    config = plan.config
    actors = config.propose_actors + config.classify_actors
    # On one machine without GPUs the pools share its cores; on a cluster an actor takes one.
    actor_cpus = max(1, runtime.cores() // actors) if config.address == "local" else 1
    with runtime.cluster(config.address, config.object_store_mb, actors * actor_cpus):
        propose_gpus = runtime.gpus_per_actor(config.propose_gpus)
        classify_gpus = runtime.gpus_per_actor(config.classify_gpus)
        progress.say(f"prompting CLIP with {len(plan.vocabulary)} classes")
        texts = runtime.run_task(
            _encode_vocabulary,
            plan.clip,
            plan.vocabulary,
            (plan.query_prompts, plan.region_prompts),
            num_gpus=classify_gpus,
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
            query_text_KD=texts.query_KD,
            region_text_KD=texts.region_KD,
            logit_scale=LOGIT_SCALE if config.logit_scale == "paper" else texts.logit_scale,
            ensemble=config.ensemble,
            ensemble_weight=config.ensemble_weight,
            keep_invalid=config.invalid_proposals == "boosted",
            oracle_truth=config.oracle_truth,
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


@dataclass(frozen=True, eq=False)
class _Texts:
    """What the vocabulary is for CLIP: unit text vectors per head, and CLIP's own scale."""

    query_KD: NDArray[np.float32]
    region_KD: NDArray[np.float32]
    logit_scale: float


def _encode_vocabulary(
    source: ClipSource, vocabulary: Vocabulary, prompts: tuple[Prompts, Prompts]
) -> _Texts:
    clip = Clip.load(source, pick_device())
    query, region = prompts
    query_KD = text_vectors(clip, vocabulary, query)
    same = region.identity == query.identity
    region_KD = query_KD if same else text_vectors(clip, vocabulary, region)
    return _Texts(query_KD, region_KD, clip.logit_scale)


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
