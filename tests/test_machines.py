"""What pools may ask of machines: what is there, and what an autoscaler would add."""

from collections.abc import Iterator

import pytest
import ray
from ray._raylet import (
    GCS_AUTOSCALER_CLUSTER_CONFIG_KEY,
    GCS_AUTOSCALER_STATE_NAMESPACE,
)
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from pipeline import machines, runtime
from pipeline.machines import ANY_MACHINE, Device, gpus_of_workers
from schemas.errors import SettingsError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def autoscaled() -> Iterator[None]:
    """Let the cluster know, as its autoscaler does, what machines it could add."""
    resources = {"CPU": 4, "GPU": 1, "propose": 1, "accelerator_type:L40S": 1}
    group = NodeGroupConfig(resources=resources, min_count=0, max_count=8, name="propose")
    store = ray._private.worker.global_worker.gcs_client
    where = (GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(), GCS_AUTOSCALER_STATE_NAMESPACE.encode())
    config = ClusterConfig(node_group_configs=[group]).SerializeToString()
    store.internal_kv_put(where[0], config, True, where[1])
    yield
    store.internal_kv_del(where[0], False, where[1])


def test_without_gpus_a_pool_takes_none(ray_session: None) -> None:
    assert Device.of(None, None, {}) == Device(0.0) == ANY_MACHINE
    assert Device(0.5).options == {"num_gpus": 0.5, "resources": {}}


@pytest.mark.parametrize(
    "accelerator, resources, name",
    [(None, {"propose": 1.0}, "'propose'"), ("L4", {}, "'accelerator_type:L4'")],
    ids=["a resource", "a card"],
)
def test_what_no_machine_offers_is_refused(
    accelerator: str | None, resources: dict[str, float], name: str
) -> None:
    with pytest.raises(SettingsError, match=f"the cluster offers no {name} on any machine"):
        Device.of(0.0, accelerator, resources)


def test_more_gpus_than_any_machine_has_are_refused() -> None:
    # They were waited for, in silence.
    with pytest.raises(SettingsError, match=r"takes 0\.5 of .* no machine .* has more than 0, "):
        Device.of(0.5, None, {})


def test_what_the_autoscaler_would_add_counts(autoscaled: None) -> None:
    assert not machines.grows_untold()
    device = Device.of(None, "L40S", {"propose": 1.0})
    assert device.options == {
        "num_gpus": 1.0, "resources": {"propose": 1.0}, "accelerator_type": "L40S",
    }  # fmt: skip
    with pytest.raises(SettingsError, match="there are GPU, accelerator_type:L40S, propose"):
        Device.of(None, "L4", {})
    assert Device.of(1.0, None, {}).num_gpus == 1.0
    with pytest.raises(SettingsError, match="no machine of the cluster has more than 1, nor"):
        Device.of(2.0, None, {})
    # Two units on one machine are not two machines of one.
    with pytest.raises(SettingsError, match="no 'propose'"):
        Device.of(None, None, {"propose": 2.0})


def test_an_autoscaler_that_does_not_tell_what_it_could_add_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As on a cluster of Ray's launcher; a real one is in `make cluster-test`.
    assert not machines.has_autoscaler()
    monkeypatch.setattr(machines, "has_autoscaler", lambda: True)
    assert machines.grows_untold()
    assert Device.of(1.0, None, {"propose": 1.0}).options["resources"] == {"propose": 1.0}
    assert Device.of(None, "L40S", {}).num_gpus == 1.0
    assert Device.of(0.0, None, {}) == ANY_MACHINE
    with pytest.raises(SettingsError, match="say how many GPUs an actor takes"):
        Device.of(None, None, {"propose": 1.0})


def test_one_gpu_is_shared_by_both_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_machine(gpus: int) -> None:
        resources = {"CPU": 8.0, "GPU": float(gpus)}
        nodes = [{"Alive": True, "Resources": resources}, {"Alive": False, "Resources": resources}]
        monkeypatch.setattr(machines.ray, "nodes", lambda: nodes)

    one_machine(1)
    assert Device.of(None, None, {}).num_gpus == 0.5
    assert Device.of(1.0, None, {}).num_gpus == 1.0
    one_machine(2)
    assert Device.of(None, None, {}).num_gpus == 1.0
    # Another may come.
    one_machine(1)
    monkeypatch.setattr(machines, "has_autoscaler", lambda: True)
    assert Device.of(None, None, {}).num_gpus == 1.0


def test_workers_of_a_training_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_machine(gpus: int) -> None:
        nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": float(gpus)}}]
        monkeypatch.setattr(machines.ray, "nodes", lambda: nodes)

    one_machine(0)
    assert gpus_of_workers(2) == 0.0
    one_machine(1)
    assert gpus_of_workers(1) == 1.0
    with pytest.raises(SettingsError, match=r"2 workers take a GPU each, the cluster has 1: "):
        gpus_of_workers(2)
    # Others may come.
    monkeypatch.setattr(machines, "has_autoscaler", lambda: True)
    assert gpus_of_workers(2) == 1.0
    one_machine(0)
    with pytest.raises(SettingsError, match=r"none with a GPU is there yet: give gpus_per_worker"):
        gpus_of_workers(1)


def test_a_task_takes_what_its_device_says() -> None:
    def mine() -> dict[str, float]:
        return dict(ray.get_runtime_context().get_assigned_resources())

    assert runtime.run_task(mine) == {"CPU": 1.0}
    here = f"node:{ray.nodes()[0]['NodeManagerAddress']}"
    device = Device(0.0, None, {here: 0.5})
    assert runtime.run_task(mine, device=device) == {"CPU": 1.0, here: 0.5}
