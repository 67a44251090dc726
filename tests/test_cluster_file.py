"""cluster.yaml through Ray's own launcher and autoscaler, with an AWS that is moto's."""

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray.autoscaler
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from jobs.settings import read_settings
from schemas.drain_config import DrainConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())
TYPES = CONFIG["available_node_types"]
WORKERS = sorted(set(TYPES) - {"head"})
PROPOSE = {"CPU": 1, "GPU": 1, "propose": 1}
CLASSIFY = {"CPU": 1, "GPU": 1, "classify": 1}
DECODE = {"CPU": 1, "memory": 768 * 2**20}

pytestmark = pytest.mark.filterwarnings("ignore")  # moto's and Ray's own


@dataclass(frozen=True)
class Launched:
    """What the launcher made of the file, in an account that holds what the runbook asks for."""

    config: dict[str, Any]
    group: str


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name, value in {"HOME": home, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, str(value))
        patch.delenv("AWS_ENDPOINT_URL", raising=False)  # of the S3 server of other tests
        config = copy.deepcopy(CONFIG)
        ec2, iam = boto3.resource("ec2"), boto3.client("iam")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        subnets = [
            vpc.create_subnet(CidrBlock=f"10.0.{index}.0/24", AvailabilityZone=zone).id
            for index, zone in enumerate(("us-east-1a", "us-east-1b"))
        ]
        group = ec2.create_security_group(GroupName="closed", Description="-", VpcId=vpc.id)
        for name in ("segmill-head", "segmill-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        for kind in config["available_node_types"].values():
            # In place of those in the file, and only there: what it leaves out, Ray would choose.
            for name, ids in {"SubnetIds": subnets, "SecurityGroupIds": [group.id]}.items():
                if name in kind["node_config"]:
                    kind["node_config"][name] = ids
        yield Launched(_bootstrap_config(config, no_config_cache=True), group.id)


def test_the_file_fits_rays_own_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(CONFIG, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(CONFIG | {"idle_timeout": 5}, schema)


def test_the_launcher_takes_it_and_opens_no_port(launched: Launched) -> None:
    groups = list(boto3.resource("ec2").security_groups.all())
    # moto's account has a default group; the launcher has added none and has changed none.
    assert {group.group_name for group in groups} == {"default", "closed"}
    (ours,) = [group for group in groups if group.id == launched.group]
    assert ours.ip_permissions == []
    assert launched.config["provider"]["use_internal_ips"]
    assert "ssm" in launched.config["auth"]["ssh_proxy_command"]


def test_every_kind_of_machine_can_be_asked_of_ec2(launched: Launched) -> None:
    ec2 = boto3.client("ec2")
    provider = AWSNodeProvider(launched.config["provider"], "segmill")
    # The images are named by parameters that only AWS looks up.
    image = ec2.describe_images()["Images"][0]["ImageId"]
    for name, kind in launched.config["available_node_types"].items():
        assert kind["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/")
        machine = copy.deepcopy(kind["node_config"]) | {"ImageId": image}
        (made,) = provider.create_node(machine, {"ray-node-name": name}, 1).values()
        assert (made.instance_type, made.public_ip_address) == (
            kind["node_config"]["InstanceType"], None,
        )  # fmt: skip
        assert (made.instance_lifecycle == "spot") == name.endswith("_spot")
        role = "segmill-head" if name == "head" else "segmill-worker"
        assert made.iam_instance_profile["Arn"].endswith(role)
        assert made.metadata_options["HttpTokens"] == "required"
        assert [found["GroupId"] for found in made.security_groups] == [launched.group]


def test_no_work_lands_on_the_head(launched: Launched) -> None:
    kinds = launched.config["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0
    assert all(kinds[name]["resources"]["CPU"] > 0 for name in WORKERS)
    assert all(kinds[name]["min_workers"] == 0 for name in WORKERS)


def wanted(launched: Launched, *demands: dict[str, float], refused: str = "") -> dict[str, int]:
    """What the autoscaler of an empty cluster launches for demands of one unit of work each."""
    config = {name: value for name, value in launched.config.items() if name != "head_node"}
    autoscaling = AutoscalingConfig(config, skip_content_hash=True)
    requests = [ResourceRequestUtil.make(demand) for demand in demands]
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=autoscaling.get_node_type_configs(),
            max_num_nodes=autoscaling.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            recoverable_resource_availabilities={refused: 0.0} if refused else {},
        )
    )
    infeasible = {"none": len(reply.infeasible_resource_requests)}
    found = {launch.instance_type: launch.count for launch in reply.to_launch}
    return found | {name: count for name, count in infeasible.items() if count}


def test_each_pool_gets_machines_of_its_own_kind(launched: Launched) -> None:
    assert wanted(launched, *[PROPOSE] * 3, *[CLASSIFY] * 2) == {
        "propose_spot": 3, "classify_spot": 2,
    }  # fmt: skip
    assert wanted(launched, *[DECODE] * 40) == {"decode": 3}
    on_the_card = PROPOSE | {"accelerator_type:L40S": 0.001}
    assert wanted(launched, on_the_card) == {"propose_spot": 1}
    assert wanted(launched, PROPOSE | {"accelerator_type:L4": 0.001}) == {"none": 1}


@pytest.mark.parametrize("pool, demand", [("propose", PROPOSE), ("classify", CLASSIFY)])
def test_where_no_spot_machine_can_be_had_one_on_demand_comes(
    launched: Launched, pool: str, demand: dict[str, float]
) -> None:
    assert wanted(launched, demand, refused=f"{pool}_spot") == {f"{pool}_on_demand": 1}
    spot, on_demand = TYPES[f"{pool}_spot"], TYPES[f"{pool}_on_demand"]
    assert spot["resources"] == on_demand["resources"]
    machine = {k: v for k, v in spot["node_config"].items() if k != "InstanceMarketOptions"}
    assert machine == on_demand["node_config"]


def test_the_cluster_never_grows_beyond_its_bound(launched: Launched) -> None:
    launches = wanted(launched, *[PROPOSE] * 30, *[CLASSIFY] * 30, *[DECODE] * 900)
    launches.pop("none")
    # One more for the head, which this empty cluster has not got.
    assert sum(launches.values()) == CONFIG["max_workers"] + 1


def test_whatever_starts_ray_asks_for_the_token() -> None:
    commands = CONFIG["head_start_ray_commands"] + CONFIG["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ~/venv/bin/ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_every_worker_waits_for_the_notice_of_its_end() -> None:
    (watch,) = [each for each in CONFIG["worker_start_ray_commands"] if "segmill drain" in each]
    assert watch.startswith("RAY_AUTH_MODE=token ") and watch.endswith("&")
    words = watch.split("segmill drain ")[1].split(" > ")[0].split()
    assert read_settings("segmill drain", DrainConfig, [], words).cloud == "aws"
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_code_and_nothing_else_is_sent() -> None:
    mounted = {
        remote.removeprefix("~/segmill/"): local
        for remote, local in CONFIG["file_mounts"].items()
        if remote.startswith("~/segmill/")
    }
    assert all(remote == local and (ROOT / local).exists() for remote, local in mounted.items())
    # What setuptools reads of the checkout to install it.
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r'include = \["(\w+)\*", "(\w+)\*", "(\w+)\*"\]', project)
    assert packages and set(packages.groups()) < set(mounted)
    assert {"pyproject.toml", "requirements.lock", "README.md", "LICENSE"} < set(mounted)


def test_the_setup_installs_the_code_that_was_sent(tmp_path: Path) -> None:
    """As the shell of a machine reads the line, with a pip that prints what it is told."""
    (install,) = [command for command in CONFIG["setup_commands"] if "--editable" in command]
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    pip.chmod(0o755)
    told = subprocess.run(
        ["bash", "-c", install], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    code = f"{tmp_path}/segmill"
    assert told[told.index("--editable") + 1] == f"{code}[cluster]"
    assert told[told.index("--constraint") + 1] == f"{code}/requirements.lock"


def test_no_key_is_in_the_file() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"AKIA|aws_(access|secret)|-----BEGIN", text)
