"""Ray: the one module that imports it. Stages become tasks and actor pools of one Ray Data plan."""

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.data import ActorPoolStrategy, DataContext, Datasink
from ray.data.datasource.datasink import WriteResult

from pipeline.cores import cores
from pipeline.machines import ANY_MACHINE, Device
from pipeline.parts import write_part
from pipeline.stages.rows import quarantine
from pipeline.storage import describe
from schemas.annotation import conform, table_from_rows
from schemas.errors import SegmillError, SettingsError
from schemas.manifest import Part

# Bytes of a block between the stages: a task that decodes many images hands them on in blocks of
# this size, and blocks are what queues are made of.
_BLOCK_BYTES: Final = 32 * 2**20
# Declared so that Ray does not start more decodes than fit. It also keeps Ray from fusing the
# decode tasks into the proposer's actors, where they would hold up the GPU.
_DECODE_MEMORY: Final = 768 * 2**20
_POLL_S: Final = 0.5
# How often an image may be at work, alone, in a worker that dies, before it is the image's fault.
_MAX_DEATHS: Final = 3
_LOCAL_THREADS: Final = 4
_TASKS_PER_CPU: Final = 2  # of those handed out one by one: at work, and next
_CODE: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("schemas", "pipeline", "jobs")

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


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


class Intake(Protocol):
    """Where rows come from: picklable settings, callable from a unit of work to tables."""

    @property
    def name(self) -> str:
        """One word, shown in progress."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the tables."""

    def __call__(self, unit: dict[str, Any], /) -> Iterator[pa.Table]:
        """Yield the rows of a unit, a few at a time."""


@dataclass(frozen=True)
class Placement:
    """A stage and where it runs: as tasks (no actors) or in its own pool of actors."""

    stage: Stage
    batch_size: int
    actors: int = 0
    device: Device = ANY_MACHINE
    num_cpus: int = 1  # of an actor; Ray sets OMP_NUM_THREADS to it


ProgressCallback = Callable[[Mapping[str, int]], None]


@contextmanager
def cluster(
    address: str, object_store_mb: int | None, actor_cpus: int, *, ship_code: bool = False
) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, and leave only what was started.

    A process that is connected already (a driver inside a Ray job, a test session) stays so. The
    token of a cluster is found the way Ray finds it: RAY_AUTH_TOKEN, a file that
    RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token. With `ship_code` workers get the code of this
    process. Raises SettingsError when the address does not answer, or refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    # Ray's own lines would run between our progress; SEGMILL_LOG_LEVEL brings them back.
    level = logging.getLogger().getEffectiveLevel()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "info" if level <= logging.INFO else "fatal")
    if address == "local":
        # Pool actors hold their CPUs for the whole run; decode tasks must find some besides.
        options["num_cpus"] = cores() + actor_cpus
        options["include_dashboard"] = False
        if object_store_mb is not None:
            options["object_store_memory"] = object_store_mb * 2**20
    else:
        # Ray itself would use a token that is there for the address "auto" only.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    if ship_code:
        options["runtime_env"] = {
            "py_modules": [str(_CODE / package) for package in _PACKAGES],
            "excludes": ["**/__pycache__/"],
        }
    try:
        with _kept_sigterm(), _silent_start(level):
            ray.init(logging_level=level, log_to_driver=level <= logging.INFO, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        # Ray does not say which of the two it was.
        token = "" if address == "local" else " (is it up, and is the token that of the cluster?)"
        raise SettingsError(f"cannot reach Ray at {address!r}: {reason}{token}") from None
    # Ray logs as errors, with tracebacks, what it tries again, and what reaches us as exceptions.
    # Said after the start, which sets the level anew.
    logging.getLogger("ray").setLevel(level if level <= logging.INFO else logging.CRITICAL)
    try:
        with _watched_node():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _watched_node() -> Iterator[None]:
    """Say when a daemon of a local Ray dies: its C++ core then ends this process, silently."""
    stop = threading.Event()
    node = ray._private.worker._global_node  # there is no public way to its processes

    daemons = [
        (name, info.process)
        for name in ("raylet", "gcs_server")
        for info in (node.all_processes.get(name, []) if node is not None else [])
    ]

    def watch() -> None:
        while not stop.wait(_POLL_S):
            for name, process in daemons:
                if process.poll() is not None:
                    logger.error(
                        "Ray's %s has died, which ends this run, within a minute; what was "
                        "finished is kept: run again to go on", name,
                    )  # fmt: skip
                    return

    thread = threading.Thread(target=watch, name="watched-node", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM; that of Ray's C++ core aborts with a dump."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


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


def run_task(work: Callable[..., T], *arguments: Any, device: Device = ANY_MACHINE) -> T:
    """Run one function on the cluster and return its result."""
    remote = ray.remote(**device.options)(work)
    try:
        result: T = ray.get(remote.remote(*arguments))
    except ray.exceptions.RayError as error:
        raise _cause(error) from None
    return result


def map_tasks(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply `work` to every item: as tasks of the cluster, or in threads where there is none."""
    if not ray.is_initialized():
        with ThreadPoolExecutor(_LOCAL_THREADS) as pool:
            return list(pool.map(work, items))
    remote = ray.remote(_apply)
    try:
        results: list[R] = ray.get([remote.remote(work, item) for item in items])
    except ray.exceptions.RayError as error:
        raise _cause(error) from None
    return results


def stream_tasks(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield `work` of every item as tasks finish, in any order; few are handed out at a time."""
    remote, shared = ray.remote(_apply), ray.put(work)
    limit = _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    try:
        for item in items:
            waiting.append(remote.remote(shared, item))
            if len(waiting) >= limit:
                finished, waiting = ray.wait(waiting)
                yield from ray.get(finished)
        while waiting:
            finished, waiting = ray.wait(waiting)
            yield from ray.get(finished)
    except ray.exceptions.RayError as error:
        raise _cause(error) from None


def _apply(work: Callable[[T], R], item: T) -> R:
    return work(item)  # Ray takes functions only, not what else can be called


@dataclass(frozen=True)
class Flow:
    """One pass through the cluster: units of work, what makes rows of them, and the stages."""

    units: pa.Table
    intake: Intake
    placements: Sequence[Placement]


def run_flow(
    flow: Flow, dataset: str, run_id: str, rows_per_part: int, on_progress: ProgressCallback
) -> list[Part]:
    """Stream units through the stages into Parquet files; return what was written.

    Nothing is published. `on_progress` is called from another thread, about twice a second, with
    the number of images that have left each stage. Raises SegmillError when the run is cut short;
    the parts written until then stay, with their records.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").level)
    board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
    rows = ray.data.from_arrow([flow.units[index : index + 1] for index in range(len(flow.units))])
    rows = rows.map_batches(
        _take_in, fn_args=(flow.intake, board), batch_size=1, batch_format="pyarrow",
        memory=_DECODE_MEMORY,
    )  # fmt: skip
    for placement in flow.placements:
        rows = _attach(rows, placement, board)
    sink = _DatasetSink(dataset, run_id, rows_per_part, board)
    stop = threading.Event()
    poller = threading.Thread(target=_poll, args=(board, on_progress, stop), daemon=True)
    poller.start()
    try:
        rows.write_datasink(sink)
    except (ray.exceptions.RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        raise _reported_error(board) or _cause(error) from None
    finally:
        stop.set()
        poller.join()
        ray.kill(board)
    return sink.parts


def _take_in(units: pa.Table, intake: Intake, board: Any) -> Iterator[pa.Table]:
    with _reporting(board):
        for unit in units.to_pylist():
            for table in intake(unit):
                board.add.remote(intake.name, len(table))
                yield conform(table, intake.schema)


def _attach(rows: ray.data.Dataset, placement: Placement, board: Any) -> ray.data.Dataset:
    options: dict[str, Any] = {
        "batch_format": "pyarrow",
        "batch_size": placement.batch_size,
        "udf_modifying_row_count": False,
    }
    if not placement.actors:
        return rows.map_batches(
            _run_stage, fn_args=(placement.stage, board), memory=_DECODE_MEMORY, **options
        )
    return rows.map_batches(
        _pool_class(placement.stage.name),
        fn_constructor_args=(placement.stage, board),
        compute=ActorPoolStrategy(size=placement.actors),
        num_cpus=placement.num_cpus,
        **placement.device.options,
        **options,
    )


def _run_stage(images: pa.Table, stage: Stage, board: Any) -> pa.Table:
    """Apply a stage, hold it to its schema, and count what has left it."""
    with _reporting(board):
        result = conform(stage(images), stage.schema)
    board.add.remote(stage.name, len(result))
    return result


class _Worker:
    """One actor of a pool: keeps its stage, and with it the loaded model.

    Ray restarts an actor that dies and gives it the same batch again, for ever. So each batch is
    announced: one that was announced before and never finished is taken apart, and an image that
    was at work alone in several workers that died is quarantined untried.
    """

    def __init__(self, stage: Stage, board: Any) -> None:
        self._stage = stage
        self._board = board

    def __call__(self, images: pa.Table) -> pa.Table:
        if len(images) and self._begin("batch", images):
            alone = [self._alone(images[index : index + 1]) for index in range(len(images))]
            result = pa.concat_tables(alone)
        else:
            result = _run_stage(images, self._stage, self._board)
        self._board.end.remote(self._key("batch", images))
        return result

    def _alone(self, image: pa.Table) -> pa.Table:
        deaths = self._begin("alone", image)
        if deaths >= _MAX_DEATHS:
            message = f"the worker died each of {deaths} times that it was at work on this image"
            row = quarantine(image.to_pylist()[0], self._stage.name, "worker_died", message)
            image = table_from_rows([row], image.schema)
        result = _run_stage(image, self._stage, self._board)
        self._board.end.remote(self._key("alone", image))
        return result

    def _begin(self, how: str, images: pa.Table) -> int:
        """Announce a batch; return how often it was announced before and not finished."""
        try:
            return int(ray.get(self._board.begin.remote(self._key(how, images))))
        except ray.exceptions.RayError:  # the board itself is being restarted
            return 0

    def _key(self, how: str, images: pa.Table) -> str:
        ids = "".join(images["image_id"].to_pylist())
        return f"{self._stage.name} {how} {hashlib.blake2b(ids.encode()).hexdigest()}"


def _pool_class(name: str) -> type[_Worker]:
    """Return the worker under the stage's name, which Ray shows for its operators and actors."""
    return type(name.capitalize(), (_Worker,), {})


@contextmanager
def _reporting(board: Any) -> Iterator[None]:
    """Tell the board what fails inside: on its way to the driver Ray Data loses the error."""
    try:
        yield
    except Exception as error:
        with suppress(ray.exceptions.RayError):
            ray.get(board.report.remote(_told(error)), timeout=10)
        raise


def _reported_error(board: Any) -> SegmillError | None:
    with suppress(ray.exceptions.RayError):
        error: SegmillError | None = ray.get(board.reported.remote(), timeout=10)
        return error
    return None


class _Board:
    """Actor that adds up how many images have left each stage, and knows what is at work."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._at_work: dict[str, int] = {}
        self._error: SegmillError | None = None

    def report(self, error: SegmillError) -> None:
        self._error = self._error or error

    def reported(self) -> SegmillError | None:
        return self._error

    def add(self, stage: str, images: int) -> None:
        self._counts[stage] = self._counts.get(stage, 0) + images

    def read(self) -> dict[str, int]:
        return self._counts

    def begin(self, key: str) -> int:
        before = self._at_work.get(key, 0)
        self._at_work[key] = before + 1
        return before

    def end(self, key: str) -> None:
        self._at_work.pop(key, None)


def _poll(board: Any, on_progress: ProgressCallback, stop: threading.Event) -> None:
    while True:
        stopped = stop.wait(_POLL_S)
        # Progress is a courtesy: never end a run for it.
        with suppress(ray.exceptions.RayError):
            on_progress(ray.get(board.read.remote(), timeout=10))
        if stopped:
            return


class _DatasetSink(Datasink):  # type: ignore[misc]  # Ray ships no types
    """Writes each bundle of rows as one part of the dataset and collects the records."""

    def __init__(self, dataset: str, run_id: str, rows_per_part: int, board: Any) -> None:
        self._dataset = dataset
        self._run_id = run_id
        self._rows_per_part = rows_per_part
        self._board = board
        self.parts: list[Part] = []

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_part

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> list[Part]:
        tables = [block for block in blocks if block.num_rows]
        if not tables:
            return []
        rows = pa.concat_tables(tables)
        parts = []
        # A bundle may be larger than asked for: a whole block more.
        for start in range(0, len(rows), 2 * self._rows_per_part):
            share = rows.slice(start, 2 * self._rows_per_part)
            with _reporting(self._board):
                parts.append(write_part(self._dataset, self._run_id, share))
            self._board.add.remote("write", len(share))
        return parts

    def on_write_complete(self, write_result: WriteResult[list[Part]]) -> None:
        self.parts = [part for parts in write_result.write_returns for part in parts]


def _cause(error: BaseException) -> SegmillError:
    """Return our own error from inside Ray's wrapping, or one that tells the wrapped error."""
    seen: BaseException | None = error
    last = error
    while seen is not None:
        if isinstance(seen, SegmillError):
            return _unwrapped(seen)
        last = seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    logger.warning("the run was cut short", exc_info=error)
    return _told(last)


def _told(error: BaseException) -> SegmillError:
    """Return our own errors as they are, and any other in one line."""
    if isinstance(error, SegmillError):
        return error
    return SegmillError(
        f"the run was cut short ({describe(error)}); what it finished is kept: run again to go on"
    )


def _unwrapped(error: SegmillError) -> SegmillError:
    """Return a plain error of the same kind: Ray's own mixes in a remote traceback."""
    inner = getattr(error, "cause", error)
    kind = next(base for base in type(inner).__mro__ if base.__module__ == SegmillError.__module__)
    plain: SegmillError = kind(str(inner.args[0]) if inner.args else "")
    return plain
