"""Starting Ray on this machine, or joining a cluster, and leaving only what was started."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray
from ray.data import DataContext, ExecutionResources

from pipeline.cluster_token import use_token
from pipeline.cores import cores
from pipeline.runtime.errors import cause
from schemas.errors import SegmillError, SettingsError

_POLL_S: Final = 0.5
_CODE: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("schemas", "pipeline", "jobs")
# Makes Ray hide a machine's GPUs from work that was given none, as it always did before 2.60.
_HIDES_GPUS: Final = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"

logger = logging.getLogger(__name__)


@contextmanager
def cluster(
    address: str, object_store_mb: int | None, actor_cpus: int, *, ship_code: bool = False
) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, and leave only what was started.

    A process that is connected already (a driver inside a Ray job, a test session) stays so. The
    token of a cluster is found the way Ray finds it: RAY_AUTH_TOKEN, a file that
    RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token. With `ship_code` workers get the code of this
    process. Raises SettingsError when the address does not answer, or refuses the token, and
    SegmillError when Ray does not start here, or fails later on.
    """
    if ray.is_initialized():
        with _in_our_words():
            yield
        return
    options: dict[str, Any] = {"address": address}
    runtime_env: dict[str, Any] = {}
    # Ray's own lines would run between our progress; SEGMILL_LOG_LEVEL brings them back.
    level = logging.getLogger().getEffectiveLevel()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "info" if level <= logging.INFO else "fatal")
    if address == "local":
        # Pool actors hold their CPUs for the whole run, and writes have one: decode tasks must find
        # as many besides as there are cores.
        options["num_cpus"] = cores() + actor_cpus + 1
        # A worker without a task would be ended after a second, as soon as there are more processes
        # than CPUs, and the next one would import Ray Data and pandas again, for a second or two.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
        # Threads of several actors share the cores: who waits for work must not spin meanwhile.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault(_HIDES_GPUS, "1")  # its workers inherit it
        options["include_dashboard"] = False
        if object_store_mb is not None:
            options["object_store_memory"] = object_store_mb * 2**20
    else:
        use_token()
        if _HIDES_GPUS not in os.environ:  # a job that says so itself may not be told again
            runtime_env["env_vars"] = {_HIDES_GPUS: "1"}
    if ship_code:
        runtime_env["py_modules"] = [str(_CODE / package) for package in _PACKAGES]
        runtime_env["excludes"] = ["**/__pycache__/"]
    if runtime_env:
        options["runtime_env"] = runtime_env
    try:
        with _kept_sigterm(), _silent_start(level):
            ray.init(logging_level=level, log_to_driver=level <= logging.INFO, **options)
    except Exception as error:  # a node that starts too slowly raises nothing more special
        reason = (str(error).strip().splitlines() or [""])[0]
        if address == "local":
            raise SegmillError(f"Ray did not start: {reason}; run again to go on") from None
        # Ray does not say which of the two it was.
        raise SettingsError(
            f"cannot reach Ray at {address!r}: {reason} (is it up, and is the token that of the "
            "cluster?)"
        ) from None
    # Ray logs as errors, with tracebacks, what it tries again, and what reaches us as exceptions.
    # Said after the start, which sets the level anew.
    logging.getLogger("ray").setLevel(level if level <= logging.INFO else logging.CRITICAL)
    budget_mb = None if address == "local" else object_store_mb
    try:
        with _in_our_words(), _watched_node(), _store_budget(budget_mb):
            yield
    finally:
        with _kept_sigterm():  # of which Ray's C++ core otherwise leaves the system's default
            ray.shutdown()


def started_here() -> bool:
    """Say whether this process started the Ray that it works on: it stays one machine."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.all_processes.get("gcs_server"))


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Tell in a line what Ray raises, wherever we call it: a node may die at any moment."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise cause(error) from None


@contextmanager
def _store_budget(budget_mb: int | None) -> Iterator[None]:
    """Let Ray Data hold no more between the stages, so that others have some of the stores."""
    options = DataContext.get_current().execution_options
    before = options.resource_limits
    if budget_mb is not None:
        options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=budget_mb * 2**20
        )
    try:
        yield
    finally:
        options.resource_limits = before


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
    """Keep the caller's handler of SIGTERM through Ray's start, or its end.

    That of Ray's C++ core aborts with a dump, and the core takes with it all handlers when it ends.
    While Ray starts, another of its own is there, which exits with the number of the signal: the
    caller's is called in its place.
    """
    handler = signal.getsignal(signal.SIGTERM)
    is_ours = callable(handler) and threading.current_thread() is threading.main_thread()
    try:
        yield
    except SystemExit as ended:
        if is_ours and ended.code == signal.SIGTERM:
            signal.signal(signal.SIGTERM, handler)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if is_ours:
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
