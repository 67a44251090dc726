"""`segmill train self-training`: a second round on pseudo labels, and what it gains (spec 4).

Four steps, each of which is kept once it is done and not done again: the pseudo-label set, the
training, labels of the comparison images by the proposer before and by the one after. The paper
does not record the second round's steps, learning rate or start (A-4): they are settings here.

Pixels without a label are part of no mask, and the losses hold them against every matched query,
as they do with all void pixels (spec 3.1).
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from jobs.annotate import annotate
from jobs.annotation_pools import held_cpus
from jobs.evaluate import evaluate
from jobs.progress import Progress, Silent
from jobs.pseudo_label_set import PseudoSummary, made_pseudo_set, make_pseudo_set
from jobs.self_training_plan import AFTER, BEFORE, SelfTrainingPlan
from jobs.train_proposals import train_proposals
from pipeline import runtime
from pipeline.evaluation.result import EvaluateResult, MeanIoUs
from pipeline.files import write_bytes
from pipeline.lock import DatasetLock, new_run_id
from pipeline.training.proposal_loop import PROPOSER
from schemas.evaluate_config import EvaluateConfig
from schemas.self_training_config import TrainSelfTrainingConfig

RESULT_FILE: Final = "result.json"


@dataclass(frozen=True)
class TrainSelfTrainingResult:
    """Where the set and the weights are, and what they gained; mean IoUs are fractions."""

    pseudo: Path
    proposer: Path
    summary: PseudoSummary
    images: int  # compared on
    before: MeanIoUs
    after: MeanIoUs
    kept: tuple[str, ...]  # steps that were done already
    seconds: float


def train_self_training(
    config: TrainSelfTrainingConfig, progress: Progress | None = None
) -> TrainSelfTrainingResult:
    """Make the pseudo-label set, train on it, and compare the proposers before and after.

    Raises SettingsError (or a kind of it) for settings and data that cannot be meant, before any
    work; LockedError when another run has the output; TrainingError when a step cannot be made.
    """
    started = time.monotonic()
    progress = progress or Silent()
    plan = SelfTrainingPlan.of(config)
    config = plan.config
    output, command = str(config.output), "train self-training"
    with progress, DatasetLock(output, new_run_id(), config.lock_ttl_s, command):
        plan.begin()
        steps = _Steps(plan, progress)
        if steps.are_done():
            return steps.result(started)
        cpus = max(
            config.workers * config.cpus_per_worker,
            held_cpus(plan.annotation.config),
        )
        with runtime.cluster(config.address, None, cpus):
            return steps.result(started)


class _Steps:
    def __init__(self, plan: SelfTrainingPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._output = plan.config.output
        self._kept: list[str] = []

    def are_done(self) -> bool:
        """Return whether nothing is left to do."""
        return (self._output / RESULT_FILE).is_file()

    def result(self, started: float) -> TrainSelfTrainingResult:
        """Do what is left; `started` is on the monotonic clock."""
        summary = self._pseudo_labels()
        proposer = self._training()
        compared = self._comparison()
        return TrainSelfTrainingResult(
            pseudo=self._plan.pseudo_directory,
            proposer=proposer,
            summary=summary,
            images=compared["images"],
            before=MeanIoUs(**compared[BEFORE]),
            after=MeanIoUs(**compared[AFTER]),
            kept=tuple(self._kept),
            seconds=time.monotonic() - started,
        )

    def _pseudo_labels(self) -> PseudoSummary:
        made = made_pseudo_set(self._plan)
        if made is not None:
            self._kept.append("pseudo labels")
            return made
        return make_pseudo_set(self._plan, self._progress)

    def _training(self) -> Path:
        config = self._plan.training()
        if (config.output / PROPOSER).is_dir():  # written once, when all steps are made
            self._kept.append("training")
            return config.output / PROPOSER
        return train_proposals(config, self._progress).proposer

    def _comparison(self) -> dict[str, Any]:
        """Return the images compared on, and plain figures before and after."""
        if self.are_done():
            self._kept.append("comparison")
            known: dict[str, Any] = json.loads((self._output / RESULT_FILE).read_bytes())
            return known
        before, after = self._evaluated(BEFORE), self._evaluated(AFTER)
        compared = {
            "images": before.images,
            BEFORE: asdict(before.headline),
            AFTER: asdict(after.headline),
        }
        write_bytes(str(self._output), RESULT_FILE, json.dumps(compared, indent=1).encode())
        return compared

    def _evaluated(self, name: str) -> EvaluateResult:
        """Label the comparison images and hold them against their truth."""
        config = self._plan.comparison(name)
        self._progress.say(f"labels {name} the second round")
        annotate(config, self._progress)
        return evaluate(
            EvaluateConfig(
                dataset=config.output,
                truth=str(self._plan.eval_masks),
                ignore=self._plan.data.ignore_label,
            )
        )
