"""`segmill train prompts`: vectors around class names, learned from regions (spec 3.2).

Run again, it goes on from its newest checkpoints; with more seeds, those are added.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from jobs.progress import Progress, Silent
from jobs.prompt_training_plan import PromptTrainingPlan
from jobs.training_plan import workers_of
from pipeline import runtime
from pipeline.files import write_bytes
from pipeline.lock import DatasetLock, new_run_id
from pipeline.training import checkpoint
from pipeline.training.prompt_loop import held_out_figures, read_figures, train
from pipeline.training.prompt_training import PROMPT_FILE, PromptTraining
from pipeline.training_runtime import Workers, run_workers
from schemas.prompt_training_config import TrainPromptsConfig

RESULT_FILE: Final = "result.json"


@dataclass(frozen=True)
class SeedFigures:
    """What a seed came to: on held-out regions (nan without any), and on those learned from."""

    seed: int
    accuracy: float  # mean over classes, in [0, 1]
    loss: float
    train_loss: float
    prompt: Path


@dataclass(frozen=True)
class TrainPromptsResult:
    """Which prompt was kept, and what all of them came to."""

    prompt: Path
    chosen_seed: int
    criterion: str
    seeds: tuple[SeedFigures, ...]
    baseline: str
    baseline_accuracy: float
    baseline_loss: float
    steps: int  # of a seed
    resumed_from: int  # steps over all seeds that were there before
    images: int
    samples: int
    held_out_samples: int
    views: int  # of a sample
    classes_without_samples: tuple[str, ...]
    skipped: Mapping[str, int]  # images by reason
    seen_classes: int
    seconds: float


def train_prompts(
    config: TrainPromptsConfig, progress: Progress | None = None
) -> TrainPromptsResult:
    """Learn a prompt from every seed, or go on with it, and write the best as prompt.safetensors.

    Raises SettingsError (or a kind of it) for settings and data that cannot be meant, before any
    step; LockedError when another run has the output; TrainingError when a step cannot be made.
    """
    started = time.monotonic()
    progress = progress or Silent()
    plan = PromptTrainingPlan.of(config)
    config, run_id = plan.config, new_run_id()
    with (
        progress,
        DatasetLock(str(config.output), run_id, config.lock_ttl_s, "train prompts"),
        runtime.cluster(config.address, None, config.workers * config.cpus_per_worker),
    ):
        plan.refuse_other_settings()
        workers = workers_of(config)
        baseline_KD = plan.baseline_vectors(progress)
        findings = plan.findings(progress)
        training = plan.training(findings)
        resumed_from = sum(
            max(checkpoint.steps_saved(training.output_of(seed)), default=0)
            for seed in config.seeds
        )
        _train(training, workers, progress, run_id, resumed_from)
        seeds = [_figures(training, seed) for seed in config.seeds]
        chosen = choose(seeds, config.criterion)
        prompt = config.output / PROMPT_FILE
        write_bytes(str(config.output), PROMPT_FILE, chosen.prompt.read_bytes())
        baseline = held_out_figures(training, baseline_KD)
        result = TrainPromptsResult(
            prompt=prompt,
            chosen_seed=chosen.seed,
            criterion=config.criterion,
            seeds=tuple(seeds),
            baseline=config.baseline,
            baseline_accuracy=baseline.get("accuracy", math.nan),
            baseline_loss=baseline.get("loss", math.nan),
            steps=config.steps,
            resumed_from=resumed_from,
            images=sum(not finding.reason for finding in findings),
            samples=len(training.samples),
            held_out_samples=len(training.held_out),
            views=training.num_views,
            classes_without_samples=training.classes_without_samples,
            skipped=dict(Counter(finding.reason for finding in findings if finding.reason)),
            seen_classes=plan.data.num_seen,
            seconds=time.monotonic() - started,
        )
        content = json.dumps(as_json(result), indent=2)
        write_bytes(str(config.output), RESULT_FILE, content.encode())
    return result


def choose(seeds: Sequence[SeedFigures], criterion: str) -> SeedFigures:
    """Return the best seed; of equal ones the better by the other figure, then the lowest seed."""
    if len(seeds) == 1:
        return seeds[0]

    def rank(figures: SeedFigures) -> tuple[float, float, int]:
        by = (-figures.accuracy, figures.loss)
        first, second = by if criterion == "accuracy" else by[::-1]
        return first, second, figures.seed

    return min(seeds, key=rank)


def as_json(result: TrainPromptsResult) -> dict[str, Any]:
    """Return a result as values of JSON, where nan is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, float):
            return None if math.isnan(value) else value
        return str(value) if isinstance(value, Path) else value

    values: dict[str, Any] = plain(asdict(result))
    return values


def _train(
    training: PromptTraining, workers: Workers, progress: Progress, run_id: str, resumed_from: int
) -> None:
    config = training.config
    if all(map(training.is_done, config.seeds)):
        return
    total = config.steps * len(config.seeds)
    start = f", from step {resumed_from}" if resumed_from else ""
    progress.say(
        f"learning from {len(training.samples)} regions of {training.data.num_seen} seen classes, "
        f"{len(config.seeds)} seeds{start}"
    )
    progress.start(["train"], total, unit="steps", done=resumed_from)
    furthest = resumed_from

    def report(done: int, note: str) -> None:
        nonlocal furthest
        furthest = max(furthest, done)
        progress.update({"train": furthest}, note)

    run_workers(partial(train, training), workers, config.output, run_id, report)


def _figures(training: PromptTraining, seed: int) -> SeedFigures:
    found = read_figures(training, seed)
    prompt = Path(training.output_of(seed)) / PROMPT_FILE
    accuracy, loss = (found.get(name, math.nan) for name in ("accuracy", "loss"))
    return SeedFigures(seed, accuracy, loss, found["train_loss"], prompt)
