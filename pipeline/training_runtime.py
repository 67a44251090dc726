"""Ray Train: workers of a training as actors of a cluster, or of this machine."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
import ray.train
from ray.train.torch import TorchTrainer, get_device

from pipeline.storage import describe
from schemas.errors import OutputError, SegmillError, SettingsError, TrainingError

if TYPE_CHECKING:
    import torch

_POLL_S: Final = 0.5
_STATE: Final = "_ray"  # what Ray Train itself keeps during a run

Report = Callable[[int, str], None]
Work = Callable[["torch.device", Report], None]


@dataclass(frozen=True)
class Workers:
    """How many workers, what each needs, and how often the group may be started again."""

    count: int
    num_cpus: int
    num_gpus: float
    max_failures: int


def run_workers(work: Work, workers: Workers, output: Path, run_id: str, report: Report) -> None:
    """Run `work` in every worker, joined by torch.distributed, until all have returned.

    `work` gets its device and what to report to; `report` is called here, about twice a second,
    with the newest that any worker reported. A group of which a worker died starts again. An error
    of ours is the same in all workers, would be the same again, and is raised here.
    """
    board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
    trainer = TorchTrainer(
        _work,
        train_loop_config={"work": work, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.num_gpus > 0,
            resources_per_worker=_resources(workers),
        ),
        run_config=ray.train.RunConfig(
            name=run_id,
            storage_path=str(output.absolute() / _STATE),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            logging_config=ray.train.LoggingConfig("ERROR"),
        ),
    )
    failures: list[Exception] = []
    # In a thread: in the main one Ray Train takes over Ctrl-C, and never gives it back.
    thread = threading.Thread(target=_fit, args=(trainer, failures), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            with suppress(ray.exceptions.RayError):
                report(*ray.get(board.newest.remote(), timeout=10))
        error: SegmillError | None = ray.get(board.error.remote())
    finally:
        ray.kill(board)
        shutil.rmtree(output / _STATE, ignore_errors=True)
    if error is not None:
        raise error
    if failures:
        raise _cut_short(failures[0])


def _resources(workers: Workers) -> dict[str, float]:
    gpus = {"GPU": workers.num_gpus} if workers.num_gpus else {}
    return {"CPU": workers.num_cpus, **gpus}


def _fit(trainer: TorchTrainer, failures: list[Exception]) -> None:
    try:
        trainer.fit()
    except Exception as error:  # Ray Train raises its own, and what the controller raised
        failures.append(error)


def _work(settings: dict[str, Any]) -> None:
    board = settings["board"]

    def report(done: int, note: str) -> None:
        board.show.remote(done, note)

    try:
        settings["work"](get_device(), report)
    except OutputError:
        raise  # of the one worker that writes: the others wait for it
    except (TrainingError, SettingsError) as error:
        # Raised by all; passed on, Ray Train would start them again, and they would end here again.
        ray.get(board.fail.remote(error))


class _Board:
    """Actor that holds the newest report, and the error that ended the training."""

    def __init__(self) -> None:
        self._newest = (0, "")
        self._error: SegmillError | None = None

    def show(self, done: int, note: str) -> None:
        self._newest = (done, note)

    def newest(self) -> tuple[int, str]:
        return self._newest

    def fail(self, error: SegmillError) -> None:
        self._error = self._error or error

    def error(self) -> SegmillError | None:
        return self._error


def _cut_short(error: Exception) -> SegmillError:
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    cause = getattr(causes[0], "cause", None) or causes[0]
    if isinstance(cause, SegmillError):
        return cause
    return SegmillError(
        f"the training was cut short ({describe(cause)}); the newest checkpoint is kept: run "
        "again to go on from it"
    )
