"""Ray: the one module that imports it. Stages become tasks and actor pools of one Ray Data plan."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasink
from ray.data.datasource.datasink import WriteResult

from pipeline.dataset import write_part
from schemas.annotation import conform
from schemas.errors import SegmillError, SettingsError
from schemas.manifest import DataFile

# Images per decode task, and so per block between the stages: enough to overlap the reads of one
# task, few enough that a block of paper-sized mask logits (7 MB an image) stays moderate.
ROWS_PER_BLOCK: Final = 8
# Declared so that Ray does not start more decodes than fit. It also keeps Ray from fusing the
# decode tasks into the proposer's actors, where they would hold up the GPU.
_DECODE_MEMORY: Final = 768 * 2**20
_POLL_S: Final = 0.5

T = TypeVar("T")


class Stage(Protocol):
    """What the pipeline is made of: picklable settings, callable from table to table."""

    @property
    def name(self) -> str:
        """One word, shown in progress and in Ray's dashboard."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the table that the stage returns."""

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return one row per row of `images`."""


@dataclass(frozen=True)
class Placement:
    """A stage and where it runs: as tasks (no actors) or in its own pool of actors."""

    stage: Stage
    batch_size: int
    actors: int = 0
    num_gpus: float = 0.0
    num_cpus: int = 1  # of an actor; Ray sets OMP_NUM_THREADS to it


ProgressCallback = Callable[[Mapping[str, int]], None]


@contextmanager
def cluster(address: str, object_store_mb: int | None, actor_cpus: int) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, and leave only what was started.

    A process that is connected already (a driver inside a Ray job, a test session) stays so.
    Raises SettingsError when the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    # Ray's own lines would run between our progress; SEGMILL_LOG_LEVEL brings them back.
    level = logging.getLogger().getEffectiveLevel()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "info" if level <= logging.INFO else "fatal")
    logging.getLogger("ray").setLevel(level)
    if address == "local":
        # Pool actors hold their CPUs for the whole run; decode tasks must find some besides.
        options["num_cpus"] = cores() + actor_cpus
        options["include_dashboard"] = False
        if object_store_mb is not None:
            options["object_store_memory"] = object_store_mb * 2**20
    try:
        with _silent_start(level):
            ray.init(logging_level=level, log_to_driver=level <= logging.INFO, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SettingsError(f"cannot reach Ray at {address!r}: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_start(level: int) -> Iterator[None]:
    """Hide the line by which Ray's C++ core announces, on stderr, that it was told to be silent."""
    if level <= logging.INFO:
        yield
        return
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_per_actor(wanted: float | None) -> float:
    """Return `wanted`, or by default 1 where the cluster has GPUs and 0 where it has none."""
    if wanted is not None:
        return wanted
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def run_task(work: Callable[..., T], *arguments: Any, num_gpus: float = 0.0) -> T:
    """Run one function on the cluster and return its result."""
    remote = ray.remote(num_gpus=num_gpus)(work)
    try:
        result: T = ray.get(remote.remote(*arguments))
    except ray.exceptions.RayError as error:
        raise _cause(error) from None
    return result


def run_pipeline(
    images: pa.Table,
    placements: Sequence[Placement],
    dataset: str,
    run_id: str,
    rows_per_file: int,
    on_progress: ProgressCallback,
) -> list[DataFile]:
    """Stream the inventory through the stages into Parquet files; return their records.

    Nothing is published. `on_progress` is called from another thread, about twice a second, with
    the number of images that have left each stage.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").level)
    counter = ray.remote(num_cpus=0)(_Counter).remote()
    blocks = [
        images[start : start + ROWS_PER_BLOCK] for start in range(0, len(images), ROWS_PER_BLOCK)
    ]
    flow = ray.data.from_arrow(blocks)
    for placement in placements:
        flow = _attach(flow, placement, counter)
    sink = _DatasetSink(dataset, run_id, rows_per_file, counter)
    stop = threading.Event()
    poller = threading.Thread(target=_poll, args=(counter, on_progress, stop), daemon=True)
    poller.start()
    try:
        flow.write_datasink(sink)
    except (ray.exceptions.RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        raise _cause(error) from None
    finally:
        stop.set()
        poller.join()
        ray.kill(counter)
    return sink.files


def _attach(flow: ray.data.Dataset, placement: Placement, counter: Any) -> ray.data.Dataset:
    options: dict[str, Any] = {
        "batch_format": "pyarrow",
        "batch_size": placement.batch_size,
        "udf_modifying_row_count": False,
    }
    if not placement.actors:
        return flow.map_batches(
            _run_stage, fn_args=(placement.stage, counter), memory=_DECODE_MEMORY, **options
        )
    return flow.map_batches(
        _pool_class(placement.stage.name),
        fn_constructor_args=(placement.stage, counter),
        compute=ActorPoolStrategy(size=placement.actors),
        num_cpus=placement.num_cpus,
        num_gpus=placement.num_gpus,
        **options,
    )


def _run_stage(images: pa.Table, stage: Stage, counter: Any) -> pa.Table:
    """Apply a stage, hold it to its schema, and count what has left it."""
    result = conform(stage(images), stage.schema)
    counter.add.remote(stage.name, len(result))
    return result


class _Worker:
    """One actor of a pool: keeps its stage, and with it the loaded model."""

    def __init__(self, stage: Stage, counter: Any) -> None:
        self._stage = stage
        self._counter = counter

    def __call__(self, images: pa.Table) -> pa.Table:
        return _run_stage(images, self._stage, self._counter)


def _pool_class(name: str) -> type[_Worker]:
    """Return the worker under the stage's name, which Ray shows for its operators and actors."""
    return type(name.capitalize(), (_Worker,), {})


class _Counter:
    """Actor that adds up how many images have left each stage."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, stage: str, images: int) -> None:
        self._counts[stage] = self._counts.get(stage, 0) + images

    def read(self) -> dict[str, int]:
        return self._counts


def _poll(counter: Any, on_progress: ProgressCallback, stop: threading.Event) -> None:
    while True:
        stopped = stop.wait(_POLL_S)
        # Progress is a courtesy: never end a run for it.
        with suppress(ray.exceptions.RayError):
            on_progress(ray.get(counter.read.remote(), timeout=10))
        if stopped:
            return


class _DatasetSink(Datasink):  # type: ignore[misc]  # Ray ships no types
    """Writes each bundle of rows as one Parquet file and collects the records."""

    def __init__(self, dataset: str, run_id: str, rows_per_file: int, counter: Any) -> None:
        self._dataset = dataset
        self._run_id = run_id
        self._rows_per_file = rows_per_file
        self._counter = counter
        self.files: list[DataFile] = []

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_file

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> DataFile | None:
        tables = [block for block in blocks if block.num_rows]
        if not tables:
            return None
        # The task index stays the same when a write is retried, and so does the file name.
        record = write_part(self._dataset, self._run_id, ctx.task_idx, pa.concat_tables(tables))
        self._counter.add.remote("write", record.rows)
        return record

    def on_write_complete(self, write_result: WriteResult[DataFile | None]) -> None:
        self.files = [record for record in write_result.write_returns if record is not None]


def _cause(error: BaseException) -> BaseException:
    """Return our own error from inside Ray's wrapping, or the wrapped error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SegmillError):
            return _unwrapped(seen)
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def _unwrapped(error: SegmillError) -> SegmillError:
    """Return a plain error of the same kind: Ray's own mixes in a remote traceback."""
    inner = getattr(error, "cause", error)
    kind = next(base for base in type(inner).__mro__ if base.__module__ == SegmillError.__module__)
    plain: SegmillError = kind(str(inner.args[0]) if inner.args else "")
    return plain
