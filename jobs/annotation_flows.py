"""The passes of an annotation run: which stages, where they run, and what goes through them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jobs.annotation_plan import AnnotationPlan
from jobs.annotation_pools import Pools
from jobs.progress import Progress
from pipeline import runtime
from pipeline.fusion import LOGIT_SCALE
from pipeline.machines import Device
from pipeline.models import find_classifier
from pipeline.models.clip import Clip, ClipSource, text_vectors
from pipeline.models.device import computes_quickly, num_gpus, pick_device
from pipeline.prompts import Prompts
from pipeline.stages.classify import Classify
from pipeline.stages.embed import Embed
from pipeline.stages.fetch import FetchDecode, source_settings
from pipeline.stages.intake import FetchImages, Recall, ReuseProposals
from pipeline.stages.label import Label
from pipeline.stages.propose import Propose
from pipeline.text_vectors import Texts, write_texts
from pipeline.work_units import Units, Work
from schemas.manifest import Encoding
from schemas.vocabulary import Vocabulary

T = TypeVar("T")

# A part is what a run that is cut short loses at most, of each write at work: half a per cent of a
# small run, less of a large one, but a corpus should not become millions of them before they are
# merged.
_FEW_PARTS, _MANY_PARTS = 200, 5_000
_LEAST_ROWS, _USUAL_ROWS, _MOST_ROWS = 16, 256, 4_096
# An image's embeddings are megabytes, or tens of kilobytes.
_ROWS_PER_PART_OF_EMBEDDINGS: Mapping[Encoding, int] = {"exact": 64, "compact": 1024}


@dataclass(frozen=True)
class Stages:
    """The stages that images go through, as settings."""

    fetch: FetchDecode
    propose: Propose
    classify: Classify
    label: Label  # alone, for what has been embedded before

    @classmethod
    def of(cls, plan: AnnotationPlan, texts: Texts, run_id: str) -> "Stages":
        """Return the stages of a plan."""
        config, label = plan.config, label_stage(plan, texts, run_id)
        return cls(
            FetchDecode(*plan.edges, source_settings(config)),
            Propose(
                config.proposer,
                config.proposer_weights,
                plan.proposer.divisor,
                config.mask_precision,
                config.proposer_modules,
                plan.pruning,
                config.proposer_precision,
            ),
            Classify(_embed(plan), label, config.keep_embeddings),
            label,
        )


def run_flows(
    plan: AnnotationPlan, work: Work, run_id: str, progress: Progress
) -> Iterator[runtime.FlowResult]:
    """Do the work on the connected cluster, and yield what each flow wrote and measured."""
    config = plan.config
    devices = (
        Device.of(config.propose_gpus, config.propose_accelerator, config.propose_resources),
        Device.of(config.classify_gpus, config.classify_accelerator, config.classify_resources),
    )
    pools = Pools.at_start(config, devices)
    progress.say(f"prompting CLIP with {len(plan.vocabulary)} classes")
    texts = run_texts(plan, devices[1])
    if config.keep_embeddings:
        write_texts(config.output, plan.fingerprints.label, texts)
    if work.fetch.images or work.reclassify.images:
        for remark in slow_precisions(plan, devices):
            progress.say(remark)
    stages = Stages.of(plan, texts, run_id)

    def run(
        units: Units, intake: runtime.Intake, placements: Sequence[runtime.Placement]
    ) -> Iterator[runtime.FlowResult]:
        if units.images:
            names = [placement.stage.name for placement in placements]
            progress.start([intake.name, *names, "write"], units.images)
            yield runtime.run_flow(
                runtime.Flow(units.table, units.images, intake, placements),
                config.output,
                run_id,
                part_rows(units.images, config.rows_per_file, config.keep_embeddings),
                progress.update,
            )

    # Tasks that take batches of some rows would be given as many units at once.
    relabel = runtime.Placement(stages.label, batch_size=None)
    yield from run(work.relabel, Recall(config.output), [relabel])
    reuse = ReuseProposals(config.output, stages.fetch)
    yield from run(work.reclassify, reuse, _placements(stages, pools)[1:])
    fetch, left = FetchImages(config.output, stages.fetch), work.fetch
    if (split := pools.probe_of(left)) is not None:
        probe, left = split
        for result in run(probe, fetch, _placements(stages, pools, is_probe=True)):
            yield result
            pools = pools.measured(result.meter) if result.meter else pools
        progress.say(f"by what was measured: {pools}")
    yield from run(left, fetch, _placements(stages, pools))


def _placements(stages: Stages, pools: Pools, is_probe: bool = False) -> list[runtime.Placement]:
    in_order: tuple[runtime.Stage, ...] = (stages.propose, stages.classify)
    placements = []
    for index, stage in enumerate(in_order):
        tried = pools.sizes_tried(stage.name) if is_probe else ()
        placements.append(
            runtime.Placement(
                stage,
                batch_size=max(tried, default=pools.batches[index]),
                actors=pools.actors[index],
                device=pools.devices[index],
                num_cpus=pools.actor_cpus,
                sizes_tried=tried,
            )
        )
    return placements


def part_rows(images: int, rows_per_file: int, keep_embeddings: Encoding | None) -> int:
    """Return how many images are written, and so are safe, at a time."""
    rows = max(
        _LEAST_ROWS,
        min(_USUAL_ROWS, images // _FEW_PARTS),
        min(_MOST_ROWS, images // _MANY_PARTS),
    )
    most = rows_per_file
    if keep_embeddings:
        most = min(most, _ROWS_PER_PART_OF_EMBEDDINGS[keep_embeddings])
    return min(most, rows)


def slow_precisions(plan: AnnotationPlan, devices: tuple[Device, Device]) -> Iterator[str]:
    """Yield a remark per pool of CPUs that was asked for half precision and has no units for it."""
    config = plan.config
    asked = (
        ("--proposer-precision", config.proposer_precision),
        ("--clip-precision", config.clip_precision),
    )
    for (option, precision), device in zip(asked, devices, strict=True):
        if precision == "fp32" or device.num_gpus:
            continue
        if not _where_it_will_be(plan, device, computes_quickly, precision):
            yield (
                f"{option} {precision}: these CPUs have no units for it, and take several times as "
                "long as with fp32"
            )


def run_texts(plan: AnnotationPlan, device: Device) -> Texts:
    """Return the text vectors of a run: computed here, or where a classifier would be."""
    prompts = plan.query_prompts, plan.region_prompts
    return _where_it_will_be(plan, device, encode_vocabulary, plan.clip, plan.vocabulary, prompts)


def _where_it_will_be(
    plan: AnnotationPlan, device: Device, work: Callable[..., T], *arguments: Any
) -> T:
    """Call a function here, or on a machine like those of a pool."""
    if plan.config.address == "local" and not num_gpus():
        # A worker would load the same libraries once more, and compute on the same cores.
        return work(*arguments)
    return runtime.run_task(work, *arguments, device=device)


def encode_vocabulary(
    source: ClipSource, vocabulary: Vocabulary, prompts: tuple[Prompts, Prompts]
) -> Texts:
    """Load CLIP and return the text vectors of the prompts of both heads."""
    return texts_of(Clip.load(source, pick_device()), vocabulary, prompts)


def texts_of(clip: Clip, vocabulary: Vocabulary, prompts: tuple[Prompts, Prompts]) -> Texts:
    """Return the text vectors of the prompts of both heads."""
    query, region = prompts
    query_KD = text_vectors(clip, vocabulary, query)
    same = region.identity == query.identity
    region_KD = query_KD if same else text_vectors(clip, vocabulary, region)
    return Texts(query_KD, region_KD, clip.logit_scale)


def _embed(plan: AnnotationPlan) -> Embed:
    config = plan.config
    return Embed(
        classifier=config.classifier,
        clip=plan.clip,
        regions=find_classifier(config.classifier).settings(config),
        crop_batch=config.crop_batch,
        asks_clip=plan.asks_clip,
        divisor=plan.proposer.divisor,
        precision=config.mask_precision,
    )


def label_stage(plan: AnnotationPlan, texts: Texts, run_id: str) -> Label:
    """Return the stage that labels embedded images by the plan."""
    config = plan.config
    return Label(
        names=plan.vocabulary.names,
        seen=plan.vocabulary.seen,
        query_text_KD=texts.query_KD,
        region_text_KD=texts.region_KD,
        logit_scale=LOGIT_SCALE if config.logit_scale == "paper" else texts.logit_scale,
        ensemble_weight=config.ensemble_weight,
        keep_invalid=config.invalid_proposals == "boosted",
        min_score=config.min_score,
        oracle_truth=config.oracle_truth,
        divisor=plan.proposer.divisor,
        precision=config.mask_precision,
        fingerprints=plan.fingerprints,
        run_id=run_id,
    )
