"""`segmill plan`: what `annotate` would do, how long it would take and cost, from a probe."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.annotation_done import retried_codes, take_over
from jobs.annotation_flows import Stages, texts_of
from jobs.annotation_plan import AnnotationPlan
from jobs.annotation_pools import actor_cpus, first_batches, planned_pools
from jobs.plan_probe import Probe, probe
from jobs.progress import Progress, Silent
from pipeline import dataset
from pipeline.cores import cores
from pipeline.corrections import Corrections
from pipeline.models.clip import Clip, template_vectors
from pipeline.models.device import num_gpus, pick_device, threads
from pipeline.plan_records import write_plan
from pipeline.planner import Planner, Preview
from pipeline.prediction import Machines, Prediction, predict
from pipeline.secrets import hide_secrets
from pipeline.vocabulary_lint import Finding, lint_vocabulary
from schemas.errors import OutputError, SettingsError
from schemas.plan import PlanRecord
from schemas.plan_config import PlanConfig


@dataclass(frozen=True)
class PlanResult:
    """What there is to do, what it would take, and what is odd about the vocabulary."""

    output: str
    inventory: int
    fetch: int  # images to go through all stages
    reclassify: int  # of which kept proposals are used again
    relabel: int  # made from kept embeddings alone; not measured, and not in the prediction
    machines: Machines
    probe: Probe | None  # None: nothing was to be fetched
    prediction: Prediction | None
    row_bytes: int
    embeddings_bytes: int
    findings: tuple[Finding, ...]
    not_recorded: str | None  # why the next run will not be compared with the plan
    seconds: float

    @property
    def images(self) -> int:
        """How many images are left to do."""
        return self.fetch + self.reclassify + self.relabel


def plan(config: PlanConfig, progress: Progress | None = None) -> PlanResult:
    """Compare source and dataset as `annotate` does, and measure some of the images to be done.

    Nothing is labelled, locked or published: of the dataset only `_runs/plan.json` is written, by
    which the next run can say how wrong the plan was; where that cannot be written the plan is told
    all the same. Raises SettingsError (or a kind of it) for wrong settings, and for GPUs that this
    machine has none of to measure.
    """
    started = time.monotonic()
    with progress or Silent() as shown:
        annotation = AnnotationPlan.of(config)
        machines = _machines(config)
        preview, inventory = _preview(config, annotation, shown)
        shown.say(f"prompting CLIP with {len(annotation.vocabulary)} classes")
        clip = Clip.load(annotation.clip, pick_device())
        vectors_TKD = template_vectors(clip, annotation.vocabulary, annotation.region_prompts)
        findings = lint_vocabulary(annotation.vocabulary, vectors_TKD)
        done: Probe | None = None
        prediction: Prediction | None = None
        if len(preview.sample):
            prompts = (annotation.query_prompts, annotation.region_prompts)
            texts = texts_of(clip, annotation.vocabulary, prompts)
            del clip
            stages = Stages.of(annotation, texts, "plan")
            done = _probed(config, stages, preview, shown)
            prediction = _predict(config, preview, done, machines)
    bytes_per_image, not_recorded = [0.0, 0.0], None
    if done and prediction:
        bytes_per_image = [size / done.images for size in (done.row_bytes, done.embeddings_bytes)]
        try:
            write_plan(config.output, _record(config, annotation, prediction, sum(bytes_per_image)))
        except OutputError as error:
            not_recorded = str(error)
    images = preview.fetch + preview.reclassify
    return PlanResult(
        output=hide_secrets(config.output),
        inventory=inventory,
        fetch=preview.fetch,
        reclassify=preview.reclassify,
        relabel=preview.relabel,
        machines=machines,
        probe=done,
        prediction=prediction,
        row_bytes=round(images * bytes_per_image[0]),
        embeddings_bytes=round(images * bytes_per_image[1]),
        findings=tuple(findings),
        not_recorded=not_recorded,
        seconds=time.monotonic() - started,
    )


def _machines(config: PlanConfig) -> Machines:
    here = num_gpus()
    for name in ("gpus", "gpu_hour_price"):
        if getattr(config, name) and not here:
            raise SettingsError(
                f"{name} is {getattr(config, name):g}, but this machine has no GPU to measure on; "
                "plan on one that has such a card, or leave it out"
            )
    is_one_machine = config.gpus is None and config.cpus is None and config.address == "local"
    return Machines(
        cpus=config.cpus or cores(),
        gpus=here if config.gpus is None else config.gpus,
        actor_cpus=actor_cpus(config) if is_one_machine else 1,
        is_one_machine=is_one_machine,
        cpu_hour_price=config.cpu_hour_price,
        gpu_hour_price=config.gpu_hour_price,
    )


def _preview(
    config: PlanConfig, annotation: AnnotationPlan, progress: Progress
) -> tuple[Preview, int]:
    """Return what is left to do, and the size of the inventory."""
    newest = dataset.newest_version(config.output)
    base = dataset.read_manifest(config.output, newest) if newest else None
    progress.say(f"listing {hide_secrets(config.source)}")
    with Planner(
        annotation.fingerprints, config.plan_memory_mb, cores(), config.keep_embeddings
    ) as planner:
        planner.add_inventory(annotation.listing())
        corrections = Corrections.read(config.output, base.corrections if base else ())
        planner.add_corrections(corrections.keys(annotation.vocabulary.names))
        take_over(planner, config.output, base, retried_codes(config))
        return planner.preview(config.probe_images), planner.images


def _probed(config: PlanConfig, stages: Stages, preview: Preview, progress: Progress) -> Probe:
    progress.start(["probe"], len(preview.sample))
    tried = 0

    def count(images: int) -> None:
        nonlocal tried
        tried += images
        progress.update({"probe": tried})

    with threads(actor_cpus(config)):
        return probe(stages, preview.sample, first_batches(config), count)


def _predict(config: PlanConfig, preview: Preview, done: Probe, machines: Machines) -> Prediction:
    # For other machines than this one the sizes are what is asked for.
    fixed = tuple(
        size if machines.is_one_machine and size != "auto" else None
        for size in (config.propose_actors, config.classify_actors)
    )
    pools = planned_pools(machines, (config.propose_gpus, config.classify_gpus), fixed)
    # Those with stored proposals cost less: of them this is the most that they may take.
    images = preview.fetch + preview.reclassify
    return predict(images, done.spent, done.warm_up_s, machines, pools)


def _record(
    config: PlanConfig, annotation: AnnotationPlan, prediction: Prediction, bytes_per_image: float
) -> PlanRecord:
    return PlanRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=annotation.fingerprints.label,
        keep_embeddings=config.keep_embeddings,
        images=prediction.images,
        start_up_s=prediction.start_up_s,
        seconds_per_image=prediction.seconds_per_image,
        bytes_per_image=bytes_per_image,
    )
