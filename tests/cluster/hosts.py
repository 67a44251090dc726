"""Ray nodes as a cluster has them, each a `ray start` of its own; a network namespace is a host."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.processes import Process, await_end, family
from tests.servers import free_port

_ROOT: Final = Path(__file__).resolve().parents[2]
RAY: Final = str(Path(sys.executable).with_name("ray"))
_PROVIDER: Final = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_START_S: Final = 180.0
_ATTEMPTS: Final = 3
_END_S: Final = 30.0
_STORE_BYTES: Final = 100 * 2**20


@dataclass(frozen=True)
class Network:
    """Two ends of a cable: ours, and that of a host in a namespace of its own."""

    name: str
    ours: str
    theirs: str

    @classmethod
    def lay(cls, name: str, subnet: str, stack: ExitStack) -> "Network":
        """Make the namespace, which goes with the stack; raises where that is not allowed."""
        network = cls(name, f"{subnet}.1", f"{subnet}.2")
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", f"{name}0", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{network.ours}/24", "dev", f"{name}0")
        _ip("link", "set", f"{name}0", "up")
        for command in (
            ("addr", "add", f"{network.theirs}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *command)
        return network

    def cut(self) -> None:
        """Drop everything between the two hosts, as a broken switch does."""
        _ip("link", "set", f"{self.name}0", "down")

    def mend(self) -> None:
        """Let it through again."""
        _ip("link", "set", f"{self.name}0", "up")


@dataclass
class Host:
    """A running node: what started it, and all processes that it had when last looked at."""

    command: Sequence[str]
    process: subprocess.Popen[bytes]
    members: set[Process] = field(default_factory=set)

    def look(self) -> None:
        """Note what belongs to it."""
        self.members |= family(self.process.pid)

    def kill(self) -> None:
        """End all of it at once, as a machine that is taken away."""
        self.look()
        for member in self.members:
            member.send(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it as a machine that is shut down."""
        self.look()
        self.process.terminate()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        await_end(self.members, 5.0)


class Cluster:
    """A head without work, and workers; use it as a context manager."""

    def __init__(self, folder: Path, ip: str = "127.0.0.1") -> None:
        self._folder = folder
        self.ip = ip  # of the head, and of workers that are on no host of their own
        self._port, self._dashboard_port = free_port(), free_port()
        self.hosts: list[Host] = []
        self.started = self.killed = 0
        self._of_head: dict[str, str] = {}  # environment of the head alone
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def address(self) -> str:
        """What a driver is given."""
        return f"{self.ip}:{self._port}"

    @property
    def job_server(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all nodes, the head last."""
        while self.hosts:
            self.hosts.pop().stop()

    def start_head(
        self, *, dashboard: bool = False, node_types: Mapping[str, Any] | None = None
    ) -> Host:
        """Start the head; with `node_types` an autoscaler adds workers on this machine."""
        options = [
            "--head", f"--port={self._port}", "--num-cpus=0", f"--temp-dir={self._folder}/ray",
            f"--include-dashboard={str(dashboard).lower()}",
            f"--dashboard-port={self._dashboard_port}",
        ]  # fmt: skip
        if node_types is not None:
            path = self._folder / "autoscaler.json"
            path.write_text(json.dumps(self._autoscaler(node_types)))
            options.append(f"--autoscaling-config={path}")
            # As `ray up` starts a head: with the autoscaler of version 2.
            self._of_head = {
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            }
        host = self._start(options, self.ip)
        self._of_head = {}
        return host

    def _autoscaler(self, node_types: Mapping[str, Any]) -> dict[str, Any]:
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "simulated",
            "max_workers": 8,
            "provider": {
                # Ray's simulated one, which its package knows by this name only: a file is missing.
                "type": "external",
                "module": _PROVIDER,
                "gcs_address": self.address,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "available_node_types": {"ray.head.default": head, **node_types},
            "head_node_type": "ray.head.default",
            "idle_timeout_minutes": 1,
            "upscaling_speed": 10.0,
            # What the launcher would fill in, and the autoscaler does not.
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            **{
                f"{name}_commands": []
                for name in (
                    "initialization",
                    "setup",
                    "head_setup",
                    "worker_setup",
                    "head_start_ray",
                    "worker_start_ray",
                )
            },
        }

    def add(
        self,
        cpus: int,
        resources: Mapping[str, float] | None = None,
        network: Network | None = None,
        gpus: int | None = None,
    ) -> Host:
        """Start a worker; one of a pool has a (simulated) GPU if not said otherwise."""
        options = [
            f"--address={self.address}",
            f"--num-cpus={cpus}", f"--num-gpus={int(bool(resources)) if gpus is None else gpus}",
            f"--resources={json.dumps(dict(resources or {}))}",
        ]  # fmt: skip
        return self._start(options, network.theirs if network else self.ip, network)

    def start_again(self, host: Host) -> Host:
        """Start a node that has ended anew, as its machine's supervisor would."""
        return self._run(host.command)

    def added_by_autoscaler(self) -> int:
        """Return how many nodes beside those that were started here have ever joined."""
        return int(self._ask("len(ray.nodes())")) - self.started

    def await_autoscaler(self) -> None:
        """Wait until the autoscaler is at work."""
        deadline = time.monotonic() + _START_S
        while self._ask("__import__('pipeline.machines').machines.has_autoscaler()") != "True":
            if time.monotonic() > deadline:
                raise RuntimeError("the autoscaler does not start")

    def _ask(self, question: str) -> str:
        """Return what a driver of the cluster finds."""
        told = subprocess.run(
            [sys.executable, "-c", f"import ray; ray.init({self.address!r}); print({question})"],
            env=self.environment, capture_output=True, text=True, check=True, timeout=_START_S,
        ).stdout  # fmt: skip
        return told.strip().splitlines()[-1]

    def kill(self, host: Host) -> None:
        """Take a machine away."""
        host.kill()
        self.hosts.remove(host)
        self.killed += 1

    def _start(self, options: Sequence[str], ip: str, network: Network | None = None) -> Host:
        command = [
            RAY, "start", *options, "--block",
            "--disable-usage-stats", f"--node-ip-address={ip}",
            f"--object-store-memory={_STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port()}",
        ]  # fmt: skip
        if network is not None:
            command = ["ip", "netns", "exec", network.name, *command]
        return self._run(command)

    def _run(self, command: Sequence[str]) -> Host:
        for attempt in range(_ATTEMPTS):
            log = self._folder / f"host-{self.started}-{attempt}.log"
            with open(log, "wb") as told:
                process = subprocess.Popen(
                    command, env={**self.environment, **self._of_head}, stdout=told, stderr=told,
                    start_new_session=True,
                )  # fmt: skip
            host = Host(command, process)
            if _has_started(host, log):
                self.started += 1
                self.hosts.append(host)
                return host
            host.stop()
        raise RuntimeError(f"a node does not start: {log.read_text(errors='replace')}")


def _has_started(host: Host, log: Path) -> bool:
    """Wait until a node is up; False where it gave up, as on a busy machine Ray does early."""
    deadline = time.monotonic() + _START_S
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if host.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    host.look()
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
