"""Ray workers that are forked from a process which has imported what they import.

Two in three seconds of a small run are imports: every actor imports Torch, transformers and
open_clip anew. The Ray of the tests therefore starts its workers by a stub, which hands its
arguments, environment and standard streams to one process that has everything imported, and forks:
a run of twelve scenes takes 4 s instead of 17. Runs that tests start as processes of their own, and
clusters, have Ray's ordinary workers.

    python -m tests.forked_workers SOCKET     the process that forks, until its stdin is closed
    python tests/forked_workers.py ...        the stub, in place of `python`
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any

_SOCKET = "SEGMILL_TESTS_FORK_AT"  # inherited by Ray, and by its workers from it
_MODULES = (
    "pipeline.models.crop_classifier",
    "pipeline.models.maskformer_proposer",
    "pipeline.stages.classify",
    "pipeline.stages.propose",
    "ray._private.workers.default_worker",
    "ray.data",
)
_BYTES = 2**16  # of a request, at a time


@contextlib.contextmanager
def forked_workers() -> Iterator[str]:
    """Start the process that forks; yield what Ray takes as `py_executable`."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        command = [sys.executable, "-m", "tests.forked_workers", path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, start_new_session=True, **pipes) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"ready\n", "there is no process to fork from"
            os.environ[_SOCKET] = path
            yield f"{sys.executable} -IS {os.path.abspath(__file__)}"
            del os.environ[_SOCKET]
            process.stdin.close()


def _fork_on_request(path: str) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    print("ready", flush=True)
    while server in select.select([server, sys.stdin], [], [])[0]:
        stub, _ = server.accept()
        message, streams, _, _ = socket.recv_fds(stub, _BYTES, 3)
        while more := stub.recv(_BYTES):
            message += more
        request = json.loads(message)
        if "ray" not in sys.modules:
            # Ray's core and OpenMP read their settings as they are loaded: those of a worker.
            os.environ.update(request["environment"])
            for module in _MODULES:
                __import__(module)
            gc.freeze()
        if os.fork() == 0:
            server.close()
            _become(request, streams)
        for descriptor in streams:
            os.close(descriptor)
        stub.close()


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Be the worker; the connection to the stub stays open for as long as this process lives."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends a worker with its process group
    for standard, descriptor in enumerate(streams):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    # As Python ends, but without taking libraries apart, at which one worker in hundreds hung.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nobody asks for it


def _hand_over() -> None:
    request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[_SOCKET])
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)  # nothing comes: it ends with the worker


if __name__ == "__main__":
    if __package__:
        _fork_on_request(sys.argv[1])
    else:
        _hand_over()
