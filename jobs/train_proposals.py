"""`segmill train proposals`: a MaskFormer from labelled images of seen classes (spec 3.1).

Run again, it goes on from its newest checkpoint.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.progress import Progress, Silent
from jobs.proposal_training_plan import ProposalTrainingPlan
from jobs.training_plan import usable, workers_of
from pipeline import runtime
from pipeline.lock import DatasetLock, new_run_id
from pipeline.training import checkpoint
from pipeline.training.proposal_loop import PROPOSER, train
from pipeline.training.proposal_training import ProposalTraining
from pipeline.training.run_log import read_log
from pipeline.training_runtime import run_workers
from schemas.training_config import TrainProposalsConfig


@dataclass(frozen=True)
class TrainProposalsResult:
    """Where the weights are, and how it went."""

    proposer: Path
    steps: int
    resumed_from: int
    images: int
    skipped: Mapping[str, int]  # by reason
    seen_classes: int
    first_loss: float
    last_loss: float
    seconds: float


def train_proposals(
    config: TrainProposalsConfig, progress: Progress | None = None
) -> TrainProposalsResult:
    """Train, or go on with the training of this output, and write `proposer/`.

    Raises SettingsError (or a kind of it) for settings and data that cannot be meant, before any
    step; LockedError when another run has the output; TrainingError when a step cannot be made.
    """
    started = time.monotonic()
    progress = progress or Silent()
    plan = ProposalTrainingPlan.of(config)
    config, run_id = plan.config, new_run_id()
    cpus = config.workers * config.cpus_per_worker
    with (
        progress,
        DatasetLock(str(config.output), run_id, config.lock_ttl_s, "train proposals"),
        runtime.cluster(config.address, None, cpus),
    ):
        plan.refuse_other_settings()
        workers = workers_of(config)
        findings = plan.findings(progress)
        pairs = [finding.pair for finding in usable(config, findings)]
        resumed_from = max(checkpoint.steps_saved(str(config.output)), default=0)
        training = ProposalTraining(
            config=config,
            model=plan.model(len(pairs)),
            text_KD=plan.text_vectors(progress),
            data=plan.data,
            pairs=tuple(pairs),
        )
        start = f", from step {resumed_from}" if resumed_from else ""
        progress.say(f"training on {len(pairs)} images of {plan.data.num_seen} seen classes{start}")
        progress.start(["train"], config.steps, unit="steps", done=resumed_from)

        def report(done: int, note: str) -> None:
            progress.update({"train": max(done, resumed_from)}, note)

        work = partial(train, training)
        run_workers(work, workers, config.output, run_id, report)
    # A log may be deleted, and the training still be finished.
    losses = [line["loss"] for line in read_log(config.output)] or [math.nan]
    return TrainProposalsResult(
        proposer=config.output / PROPOSER,
        steps=config.steps,
        resumed_from=resumed_from,
        images=len(pairs),
        skipped=dict(Counter(finding.reason for finding in findings if finding.reason)),
        seen_classes=plan.data.num_seen,
        first_loss=losses[0],
        last_loss=losses[-1],
        seconds=time.monotonic() - started,
    )
