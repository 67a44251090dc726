"""Ray for trainings: workers as actors of a cluster or of this machine, and what they read."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer, get_device

from pipeline.dataset import read_manifest
from pipeline.storage import describe, hide_secrets
from schemas.errors import OutputError, SegmillError, SettingsError, TrainingError

if TYPE_CHECKING:
    import torch

    from pipeline.training_data import SampleReader
    from schemas.export_config import TrainingDataConfig

_POLL_S: Final = 0.5
_STATE: Final = "_ray"  # what Ray Train itself keeps during a run

_ROWS_PER_TASK: Final = 16  # of which images are in memory together

logger = logging.getLogger(__name__)

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
        error: SegmillError | None = None
        with suppress(ray.exceptions.RayError):  # a board that died has forgotten it
            error = ray.get(board.error.remote(), timeout=10)
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


def read_version(config: TrainingDataConfig) -> ray.data.Dataset:
    """Return the images of a version as a stream: `image` (H, W, 3), `labels` (H, W), `image_id`.

    Labels are int32, pixels of no class 255 (65535 where 255 is a class). An image that changed
    since it was labelled, or cannot be had, is left out with a warning in the worker's log. Raises
    SettingsError before anything runs, as an export would.
    """
    from pipeline.training_data import SampleReader, wanted_groups

    manifest = read_manifest(config.dataset, config.version)
    reader = SampleReader.of(config, manifest)
    units = [
        {"path": group.path, "group": group.group, "rows": group.rows[start:end].tolist()}
        for group in wanted_groups(config, manifest)
        for start in range(0, len(group.rows), _ROWS_PER_TASK)
        for end in (start + _ROWS_PER_TASK,)
    ]
    if not units:
        raise OutputError(f"{hide_secrets(config.dataset)} has no labelled image of this split")
    rows = ray.data.from_arrow([pa.Table.from_pylist([unit]) for unit in units])
    return rows.flat_map(_samples, fn_args=(config.dataset, reader))


def _samples(unit: dict[str, Any], dataset: str, reader: SampleReader) -> list[dict[str, Any]]:
    from pipeline.exports.pictures import LeftOut
    from pipeline.training_data import read_group

    table = read_group(dataset, unit["path"], int(unit["group"])).take(list(unit["rows"]))
    samples: list[dict[str, Any]] = []
    for row in table.to_pylist():
        sample = reader.sample(row)
        if isinstance(sample, LeftOut):
            logger.warning("%s is left out: %s", hide_secrets(row["uri"]), sample.message)
        else:
            samples.append(sample)
    return samples
