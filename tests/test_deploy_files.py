"""What jobs/deploy and the Dockerfile say: that the programs that read them will understand it."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from jobs.cli import COMMANDS
from jobs.settings import read_settings
from schemas.annotate_config import AnnotateConfig
from schemas.drain_config import DrainConfig

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "jobs" / "deploy"
COMMAND = "segmill annotate --config /etc/segmill/nightly.yaml"


def documents(name: str) -> dict[str, Any]:
    """The documents of a manifest by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / name).read_text())}


JOB = documents("rayjob.yaml")["RayJob"]
CRON = documents("raycronjob.yaml")["RayCronJob"]
FALLBACK = documents("cronjob.yaml")
CLUSTER = JOB["spec"]["rayClusterSpec"]


def test_every_way_to_schedule_calls_the_same_command() -> None:
    assert JOB["spec"]["entrypoint"] == COMMAND
    assert CRON["spec"]["jobTemplate"] == JOB["spec"]
    (container,) = FALLBACK["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["command"][-1].endswith("/rayjob.yaml")
    assert (
        f"ExecStart=/opt/segmill/venv/bin/{COMMAND}\n" in (DEPLOY / "segmill.service").read_text()
    )
    assert f"/opt/segmill/venv/bin/{COMMAND} " in (DEPLOY / "crontab").read_text()


def test_the_command_takes_its_settings_and_those_of_each_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--config", str(DEPLOY / "nightly.yaml")]
    one_machine = read_settings("segmill annotate", AnnotateConfig, ["source"], arguments)
    assert (one_machine.address, one_machine.propose_resources) == ("local", {})
    for name, value in yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])["env_vars"].items():
        monkeypatch.setenv(name, value)
    cluster = read_settings("segmill annotate", AnnotateConfig, ["source"], arguments)
    assert (cluster.address, cluster.propose_actors, cluster.classify_actors) == ("auto", 4, 2)
    assert (cluster.propose_resources, cluster.classify_resources) == (
        {"propose": 1}, {"classify": 1},
    )  # fmt: skip
    assert cluster.output == one_machine.output


def test_the_manifests_name_what_exists_and_the_versions_that_are_locked() -> None:
    assert (JOB["apiVersion"], CRON["apiVersion"]) == ("ray.io/v1", "ray.io/v1")
    assert CLUSTER["rayVersion"] == ray.__version__
    assert CLUSTER["authOptions"] == {"mode": "token"}
    role, binding = FALLBACK["Role"], FALLBACK["RoleBinding"]
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = FALLBACK["ServiceAccount"]["metadata"]["name"]
    pod = FALLBACK["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert account == pod["serviceAccountName"] == binding["subjects"][0]["name"]


def pods() -> list[dict[str, Any]]:
    groups = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
    cron = FALLBACK["CronJob"]["spec"]["jobTemplate"]["spec"]
    return [each["template"]["spec"] for each in [*groups, cron]]


def test_no_pod_runs_as_root_or_without_bounds() -> None:
    assert len(pods()) == 7
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert {"memory"} <= set(container["resources"]["limits"])
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounts == volumes


def launched(*demands: dict[str, float], refused: str = "") -> dict[str, int]:
    """What Ray's autoscaler launches for demands, reading the manifest as in Kubernetes."""
    resource = {"metadata": {"name": "segmill", "namespace": "here"}, "spec": CLUSTER}
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), True)
    requests = [ResourceRequestUtil.make(demand) for demand in demands]
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            recoverable_resource_availabilities={refused: 0.0} if refused else {},
        )
    )
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize("pool", ["propose", "classify"])
def test_rays_autoscaler_finds_the_machines_of_each_pool(pool: str) -> None:
    actor = {"CPU": 1.0, "GPU": 1.0, pool: 1.0}
    assert launched(actor, actor) == {f"{pool}-spot": 2}
    assert launched(actor, refused=f"{pool}-spot") == {f"{pool}-on-demand": 1}
    assert launched(*[{"CPU": 1.0}] * 16) == {"decode": 2}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_service_and_timer(tmp_path: Path) -> None:
    service = (DEPLOY / "segmill.service").read_text()
    # The program must exist to be accepted; the user is looked up when it starts.
    service = service.replace("/opt/segmill/venv/bin/segmill", sys.executable)
    (tmp_path / "segmill.service").write_text(service)
    shutil.copy(DEPLOY / "segmill.timer", tmp_path)

    def complaints() -> str:
        units = [str(tmp_path / f"segmill.{kind}") for kind in ("service", "timer")]
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *units],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return "\n".join(line for line in done.stderr.splitlines() if str(tmp_path) in line)

    assert complaints() == ""
    (tmp_path / "segmill.service").write_text(service.replace("KillMode=mixed", "KillMode=all"))
    assert "Failed to parse kill mode" in complaints()


def test_the_lines_of_the_crontab_are_such(tmp_path: Path) -> None:
    lines = [
        line
        for line in (DEPLOY / "crontab").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    jobs = [line for line in lines if not re.fullmatch(r"[A-Z_]+=\S+", line)]
    assert len(jobs) == 2
    for job in jobs:
        *when, command = job.split(maxsplit=5)
        assert all(re.fullmatch(r"\d+|\*", field) for field in when)
        # An unescaped percent sign is a newline to cron.
        assert "%" not in command
        subprocess.run(["sh", "-n", "-c", command], check=True)
        words = shlex.split(command)
        name = words[words.index("/opt/segmill/venv/bin/segmill") + 1]
        assert name in COMMANDS


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    copied = {
        source
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert {"pyproject.toml", "requirements.lock", "schemas", "pipeline", "jobs"} < copied
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*"
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, f"{name}*") for name in let_in), source
    assert let_in == {source.partition("/")[0] for source in copied}


def test_every_stage_of_the_image_is_one_that_came_before() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    stages: list[str] = []
    for line in lines:
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            assert base.startswith("${") or base in stages, line
            stages.append(name)
        if found := re.search(r"--from=(\S+)|,from=([\w-]+)", line):
            assert (found[1] or found[2]) in stages, line
    assert stages[-2:] == ["cpu", "cuda"]
    # What runs is not root, in either image.
    for name in ("cpu", "cuda"):
        part = lines[lines.index(f"FROM system AS {name}") :]
        assert part.index("USER ray") < part.index('CMD ["segmill", "--help"]')


def test_the_environment_of_the_image_is_what_the_project_asks_for(tmp_path: Path) -> None:
    """Run the script with a pip that only notes what it is asked to install."""
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
mkdir -p "$3/bin" && ln -s {sys.executable} "$3/bin/python"
printf '#!/bin/sh\\necho "$PIP_CONSTRAINT $*" >> {tmp_path}/asked\\n' > "$3/bin/pip"
chmod +x "$3/bin/pip"
"""
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "DETECTRON2": "abc", "TORCH_INDEX": "there"}
    subprocess.run(
        ["sh", str(DEPLOY / "install-environment.sh"), str(tmp_path / "venv")],
        cwd=tmp_path, env=environment, check=True,
    )  # fmt: skip
    asked = [line.split(maxsplit=1) for line in (tmp_path / "asked").read_text().splitlines()]
    assert {constraint for constraint, _ in asked} == {str(tmp_path / "requirements.lock")}
    assert [what for _, what in asked] == [
        "install --index-url there torch torchvision",
        f"install --requirement {tmp_path}/venv/requirements.txt",
        "install setuptools wheel",
        "install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git@abc",
        "check",
    ]
    requirements = (tmp_path / "venv" / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("ray[default]") for line in requirements)
    assert any(line.startswith("open_clip_torch") for line in requirements)


def test_a_spot_pod_is_drained_before_it_goes() -> None:
    for group in CLUSTER["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        if "spot" not in group["groupName"]:
            continue
        *_, script = container["lifecycle"]["preStop"]["exec"]["command"]
        drain, sleep, stop = script.split("; ")
        words = drain.removeprefix("segmill drain ").split()
        settings = read_settings("segmill drain", DrainConfig, [], words)
        # What runs has until then, and the pod is still there.
        seconds = int(sleep.removeprefix("sleep "))
        assert seconds < settings.deadline_s < spec["terminationGracePeriodSeconds"]
        assert settings.now and stop == "ray stop"
