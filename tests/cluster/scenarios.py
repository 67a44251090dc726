"""What happens to a cluster during a run; afterwards the dataset must be that of one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.dataset import read_manifest
from pipeline.verification import check_version
from tests.chaos.ground import Ground, Stages, rows_by_name
from tests.chaos.run import ProgressLog
from tests.cluster.hosts import RAY, Cluster, Host, Network

PROPOSE: Final = {"propose": 1.0}
CLASSIFY: Final = {"classify": 1.0}
POOLS: Final = {
    "propose-actors": "2",
    "propose-resources": json.dumps(PROPOSE),
    "classify-resources": json.dumps(CLASSIFY),
}
# Far above what any scenario takes; a run that hangs should fail, not wait.
LIMIT_S: Final = float(os.environ.get("CLUSTER_LIMIT_S", "600"))
PARTITION_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True)
class Strike:
    """Something that is done once so many images have left a stage."""

    stage: str
    images: int
    action: Callable[[], object]


@dataclass
class Bench:
    """A place for one scenario: its cluster, the corpus, and what was found wrong."""

    cluster: Cluster
    ground: Ground
    name: str
    stages: Stages
    stack: ExitStack  # of what must outlive the cluster
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The dataset of the scenario."""
        return self.ground.output(f"labels-{self.name}")

    @property
    def log(self) -> Path:
        """Where the command tells its progress."""
        return self.ground.folder / f"{self.name}.log"

    def command(self, settings: Mapping[str, str]) -> list[str]:
        """Return the command line of a run on the cluster."""
        chosen = {**POOLS, "object-store-mb": "200", "address": self.cluster.address, **settings}
        return self.ground.command(self.output, self.log, chosen, self.stages)

    def label(
        self, settings: Mapping[str, str] | None = None, strikes: Sequence[Strike] = ()
    ) -> None:
        """Run the command to its end, striking at its moments."""
        with open(self.log.with_suffix(".err"), "wb") as err:
            process = subprocess.Popen(
                self.command(settings or {}), env=self.cluster.environment, stdout=err, stderr=err
            )
            code = self.watch(process.poll, strikes)
            if code is None:
                process.kill()
                process.wait()
        self.expect(code, self.log.with_suffix(".err").read_text(errors="replace"))

    def watch(self, ended: Callable[[], int | None], strikes: Sequence[Strike]) -> int | None:
        """Strike while the run goes on; return its exit code, None if it takes too long."""
        log, due = ProgressLog(self.log), list(strikes)
        deadline = time.monotonic() + LIMIT_S
        while (code := ended()) is None and time.monotonic() < deadline:
            done = log.read().done
            for strike in [strike for strike in due if done[strike.stage] >= strike.images]:
                due.remove(strike)
                strike.action()
            time.sleep(_LOOK_EVERY_S)
        self.problems += [f"never came to {strike.stage} {strike.images}" for strike in due]
        return code

    def expect(self, code: int | None, told: str) -> None:
        """Note a run that did not end well, with the end of what it told."""
        if code != 0:
            self.problems.append(f"exit {code}: {told[-1500:]}")
        if "Traceback" in told:
            self.problems.append(f"a traceback was shown: {told[-3000:]}")

    def judge(self) -> None:
        """Compare the dataset with that of one machine."""
        if self.problems:
            return
        expected, found = (
            self.ground.reference(0, self.stages),
            rows_by_name(self.ground, self.output),
        )
        if expected != found:
            differing = [name for name in expected if found.get(name) != expected[name]]
            self.problems.append(
                f"{len(differing)} rows differ, such as {differing[:3]}, of {len(found)}"
            )
        manifest = read_manifest(self.output)
        self.problems += check_version(self.output, manifest, None)[0]


def workers(
    bench: Bench, network: Network | None = None, *, dashboard: bool = False
) -> tuple[Host, Host, Host]:
    """Start a head and what the two pools and the decode tasks need: five nodes.

    Returns the two proposers, of which the second is the host at the end of a network, and the
    classifier.
    """
    cluster = bench.cluster
    if network is not None:
        cluster.ip = network.ours
    cluster.start_head(dashboard=dashboard)
    cluster.add(2)
    first, second = cluster.add(1, PROPOSE), cluster.add(1, PROPOSE, network)
    return first, second, cluster.add(1, CLASSIFY)


def undisturbed(bench: Bench) -> None:
    """Five nodes, each pool on its own."""
    workers(bench)
    bench.label()


def killed_and_added(bench: Bench) -> None:
    """A node of each pool is taken away in the middle of its work; others come."""
    cluster = bench.cluster
    proposer, _, classifier = workers(bench)

    def replace(host: Host, pool: Mapping[str, float]) -> None:
        cluster.kill(host)
        cluster.add(1, pool)

    bench.label(
        strikes=[
            Strike("propose", 10, lambda: replace(proposer, PROPOSE)),
            Strike("classify", 20, lambda: replace(classifier, CLASSIFY)),
        ]
    )


def drained(bench: Bench) -> None:
    """A node is told that it will be taken away, and is, once it is drained."""
    cluster = bench.cluster
    network = Network.lay("sm-drain", "10.77.1", bench.stack)
    _, spot, _ = workers(bench, network)

    def notice() -> None:
        command = [
            sys.executable, "-m", "jobs.cli", "drain", "--now", "--deadline-s", "15",
            # Not "auto", which looks for processes: those of other hosts of this bench, too.
            "--address", cluster.address,
        ]  # fmt: skip
        told = subprocess.run(
            ["ip", "netns", "exec", network.name, *command],
            env=cluster.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        bench.facts["drain"] = told.stdout.strip().splitlines()[-1:]
        if told.returncode:
            bench.problems.append(f"drain: {told.stderr[-1000:]}")
        time.sleep(5)
        cluster.kill(spot)

    bench.label(strikes=[Strike("propose", 10, notice)])


def cut_off(bench: Bench) -> None:
    """The cable to a host of the proposers is broken for a minute; the host then joins again."""
    cluster = bench.cluster
    network = Network.lay("sm-cut", "10.77.2", bench.stack)
    _, far, _ = workers(bench, network)

    def cut() -> None:
        network.cut()
        time.sleep(PARTITION_S)
        network.mend()
        # A node that was given up for dead ends when it hears so; its machine starts it again.
        far.process.wait(LIMIT_S)
        cluster.hosts.remove(far)
        cluster.killed += 1
        cluster.start_again(far)

    bench.label(strikes=[Strike("propose", 10, cut)])


def submitted(bench: Bench) -> None:
    """The run is a Ray job; who submitted it goes away at once."""
    cluster = bench.cluster
    workers(bench, dashboard=True)
    command = bench.command({"address": "auto"})
    submit = [
        RAY, "job", "submit", "--address",
        cluster.job_server, "--submission-id", bench.name, "--", *command,
    ]  # fmt: skip
    client = subprocess.Popen(
        submit, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def status() -> int | None:
        told = subprocess.run(
            [RAY, "job", "status", "--address", cluster.job_server, bench.name],
            env=cluster.environment, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        if "succeeded" in told.lower():
            return 0
        return 1 if "failed" in told.lower() or "stopped" in told.lower() else None

    def leave() -> None:
        client.send_signal(signal.SIGKILL)
        client.wait()
        bench.facts["client_left_at"] = "propose 5"

    code = bench.watch(status, [Strike("propose", 5, leave)])
    bench.expect(code, "" if code == 0 else _job_log(bench))


def _job_log(bench: Bench) -> str:
    return subprocess.run(
        [RAY, "job", "logs", "--address", bench.cluster.job_server, bench.name],
        env=bench.cluster.environment, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip


def autoscaled(bench: Bench) -> None:
    """No worker is there when the run starts; the autoscaler adds those that the pools ask for."""

    def kind(resources: Mapping[str, float], most: int) -> dict[str, Any]:
        return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}

    node_types = {
        "decode": kind({"CPU": 2}, 1),
        "propose": kind({"CPU": 1, "GPU": 1, **PROPOSE}, 2),
        "classify": kind({"CPU": 1, "GPU": 1, **CLASSIFY}, 1),
    }
    bench.cluster.start_head(node_types=node_types)
    bench.cluster.await_autoscaler()
    # No machine with a GPU is there yet, by which it could be guessed.
    bench.label({"propose-gpus": "1", "classify-gpus": "1"})
    bench.facts["added"] = bench.cluster.added_by_autoscaler()


SCENARIOS: Final[Mapping[str, Callable[[Bench], None]]] = {
    scenario.__name__: scenario
    for scenario in (undisturbed, killed_and_added, drained, cut_off, submitted, autoscaled)
}
