"""What Ray's start and end leave of a process: its handler of SIGTERM."""

import math
import os
import signal
import subprocess
import sys

import pytest
import ray
from ray.data import DataContext

from pipeline.runtime import connection
from pipeline.runtime.connection import _kept_sigterm
from schemas.errors import SegmillError, SettingsError


@pytest.fixture
def ours():
    """A handler as `jobs.cli` sets it."""

    def handler(number, frame):
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture
def no_ray(monkeypatch):
    """A process without Ray, in which none is ended: that of the session goes on."""
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "shutdown", lambda: None)


def of_ray(number, frame):
    sys.exit(number)


@pytest.mark.parametrize("is_hit", [False, True])
def test_ours_is_there_again_after_rays_start(ours, is_hit):
    def start():
        with _kept_sigterm():
            signal.signal(signal.SIGTERM, of_ray)
            if is_hit:  # found by chaos: the run ended with 15 and said nothing
                os.kill(os.getpid(), signal.SIGTERM)

    if is_hit:
        with pytest.raises(KeyboardInterrupt):
            start()
    else:
        start()
    assert signal.getsignal(signal.SIGTERM) is ours


def test_what_else_ends_the_start_goes_through(ours):
    with pytest.raises(SystemExit, match="3"), _kept_sigterm():
        signal.signal(signal.SIGTERM, of_ray)
        sys.exit(3)
    assert signal.getsignal(signal.SIGTERM) is ours


AFTER_RAY = """
import os, signal, sys, time
from pipeline.runtime.connection import cluster

def ours(number, frame):
    print("told", flush=True)
    sys.exit(7)

signal.signal(signal.SIGTERM, ours)
with cluster("local", 80, 1):
    pass
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
"""


@pytest.mark.ray
def test_ours_is_there_again_after_rays_end():
    # Found by chaos: a run that was told to end between its publication and its record just died.
    ended = subprocess.run(
        [sys.executable, "-c", AFTER_RAY], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (7, ["told"]), ended.stderr


GPUS = """
import os, sys
from functools import partial
import ray
from ray.cluster_utils import Cluster
from pipeline import runtime
from pipeline.machines import Device

def seen():
    return os.environ["CUDA_VISIBLE_DEVICES"]

class Actor:
    def seen(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

address, head = sys.argv[1], {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
if address == "local":
    ray.init = partial(ray.init, num_gpus=1)
else:
    address = Cluster(initialize_head=True, head_node_args=head).address
with runtime.cluster(address, 80, 1):
    for gpus in (0.0, 1.0):
        device = Device(gpus)
        print("task", gpus, repr(runtime.run_task(seen, device=device)))
        actor = ray.remote(**device.options)(Actor).remote()
        print("actor", gpus, repr(ray.get(actor.seen.remote())))
        ray.kill(actor)
"""


@pytest.mark.ray
@pytest.mark.parametrize("address", ["local", "joined"])
def test_work_without_a_gpu_sees_none_of_the_machines(address):
    # The head above has no token, whatever there is on this machine.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0", "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", None)
    ended = subprocess.run(
        [sys.executable, "-c", GPUS, address],
        capture_output=True, text=True, timeout=240, check=False, env=environment,
    )  # fmt: skip
    assert [line for line in ended.stdout.splitlines() if line.startswith(("task", "actor"))] == [
        "task 0.0 ''", "actor 0.0 ''", "task 1.0 '0'", "actor 1.0 '0'",
    ], ended.stderr  # fmt: skip


def test_a_job_that_hides_gpus_itself_is_not_told_twice(monkeypatch, no_ray):
    # Ray refuses to merge what its job and its driver both say.
    started = []
    monkeypatch.setattr(connection.ray, "init", lambda **options: started.append(options))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    with connection.cluster("head:6379", None, 1):
        assert "runtime_env" not in started[0]


@pytest.mark.usefixtures("no_ray")
def test_a_ray_that_does_not_start_is_told_in_one_line(monkeypatch):
    def start(**options):
        raise Exception("The current node timed out during startup.\nGCS may be overloaded")

    monkeypatch.setattr(connection.ray, "init", start)
    with (
        pytest.raises(SegmillError, match=r"Ray did not start: The current .*startup\.; run again"),
        connection.cluster("local", None, 1),
    ):
        raise AssertionError("there is no Ray")
    with (
        pytest.raises(SettingsError, match="cannot reach Ray at 'head:6379': The current node"),
        connection.cluster("head:6379", None, 1),
    ):
        raise AssertionError("there is no Ray")


@pytest.mark.parametrize("is_connected", [False, True])
def test_a_node_that_dies_between_our_calls_is_told_in_one_line(monkeypatch, is_connected):
    # Found by chaos: Ray Data asks the cluster already when a plan is made, before it is run.
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: is_connected)
    monkeypatch.setattr(connection.ray, "init", lambda **options: None)
    monkeypatch.setattr(connection.ray, "shutdown", lambda: None)
    with (
        pytest.raises(SegmillError, match=r"cut short \(LocalRayletDiedError.*run again to go on"),
        connection.cluster("local", None, 1),
    ):
        raise ray.exceptions.LocalRayletDiedError


@pytest.mark.parametrize("address, limit", [("head:6379", 300 * 2**20), ("local", math.inf)])
@pytest.mark.usefixtures("no_ray")
def test_a_run_on_a_cluster_takes_no_more_of_its_stores_than_it_may(monkeypatch, address, limit):
    started = []
    monkeypatch.setattr(connection.ray, "init", lambda **options: started.append(options))
    options = DataContext.get_current().execution_options
    before = options.resource_limits
    with connection.cluster(address, 300, 1):
        assert options.resource_limits.object_store_memory == limit
    assert options.resource_limits == before
    # A local run's store is made of that size instead.
    assert started[0].get("object_store_memory") == (300 * 2**20 if address == "local" else None)
