"""What work needs of the machine that it lands on, and what the machines of a cluster offer."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from pipeline.pool_sizes import Offer
from schemas.errors import SettingsError

_ACCELERATOR: Final = "accelerator_type:"  # Ray's resource of machines with such a card
_ANY_CARD: Final = 0.001  # what Ray takes of it
_EVERYWHERE: Final = {"CPU", "memory", "object_store_memory"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What an actor needs of its machine: GPUs, the kind of card, custom resources of Ray."""

    num_gpus: float = 0.0
    accelerator: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, num_gpus: float | None, accelerator: str | None, resources: Mapping[str, float]
    ) -> "Device":
        """Choose `num_gpus` where it is None: 1 where the connected cluster has, or may add, GPUs.

        It is half of one where there is just one and will be no other, for there are two pools.

        Raises SettingsError for what the cluster neither has nor may add: it would be waited for.
        Where an autoscaler does not tell what it could add, it is; and whether an actor takes a GPU
        must be said while no machine with one is there.
        """
        offered = _offered()
        is_open = grows_untold()
        if num_gpus is None:
            if is_open and not offered.get("GPU") and not accelerator:
                raise SettingsError(
                    "the cluster's autoscaler may add machines, and none with a GPU is there yet: "
                    "say how many GPUs an actor takes (propose_gpus and classify_gpus; 0: none)"
                )
            num_gpus = 1.0 if offered.get("GPU", 0) or (is_open and accelerator) else 0.0
            if offered.get("GPU", 0) and _is_only_gpu():
                num_gpus = 0.5
        most = offered.get("GPU", 0)
        if num_gpus > most:
            if not is_open:
                raise SettingsError(
                    f"an actor takes {num_gpus:g} of a machine's GPUs, and no machine of the "
                    f"cluster has more than {most:g}, nor would one of its autoscaler: take no "
                    "more (propose_gpus and classify_gpus; 0: none)"
                )
            logger.warning(
                "no machine has %g GPUs yet: waiting for the autoscaler (now at most %g)",
                num_gpus, most,
            )  # fmt: skip
        kinds = [f"{_ACCELERATOR}{accelerator}"] if accelerator else []
        for name in [*resources, *kinds]:
            if offered.get(name, 0) >= resources.get(name, _ANY_CARD):
                continue
            known = ", ".join(sorted(set(offered) - _EVERYWHERE)) or "none"
            if not is_open:
                raise SettingsError(
                    f"the cluster offers no {name!r} on any machine, nor would its autoscaler; "
                    f"there are {known}"
                )
            logger.warning(
                "no machine offers %r yet: waiting for the autoscaler (there are %s)", name, known
            )
        return cls(num_gpus, accelerator, resources)

    @property
    def options(self) -> dict[str, Any]:
        """What Ray calls it."""
        kind = {"accelerator_type": self.accelerator} if self.accelerator else {}
        return {"num_gpus": self.num_gpus, "resources": dict(self.resources), **kind}


def gpus_of_workers(workers: int) -> float:
    """Return the GPUs of each worker of a training: 1 where the connected cluster has any, else 0.

    Raises SettingsError for fewer GPUs than workers, which would be waited for, and where an
    autoscaler does not tell what it could add.
    """
    has_gpus = _offered().get("GPU", 0) > 0
    if grows_untold():
        if not has_gpus:
            raise SettingsError(
                "the cluster's autoscaler may add machines, and none with a GPU is there yet: "
                "give gpus_per_worker (0: none)"
            )
    elif 0 < (gpus := offer([])[0].gpus) < workers:
        raise SettingsError(
            f"{workers} workers take a GPU each, the cluster has {gpus:g}: lower workers, or give "
            "gpus_per_worker (0: none)"
        )
    return float(has_gpus)


def offer(devices: Sequence[Device]) -> tuple[Offer, list[int | None]]:
    """Return what the connected cluster has, or may add, in all; and how many of each device.

    The latter is None for a device that any machine has room for.
    """
    config = _config()
    groups = config.node_group_configs if config else []
    added = [dict(group.resources) for group in groups for _ in range(max(0, group.max_count))]
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # An autoscaler's machines are among those alive as soon as it has added them.
    found = added if sum(map(_cpus, added)) > sum(map(_cpus, alive)) else alive
    total = Offer(
        sum(map(_cpus, found)), sum(one.get("GPU", 0.0) for one in found), len(found) == 1
    )
    return total, [_room(device, found) for device in devices]


def _cpus(machine: Mapping[str, float]) -> float:
    return machine.get("CPU", 0.0)


def _room(device: Device, machines: Iterable[Mapping[str, float]]) -> int | None:
    needs = dict(device.resources)
    if device.accelerator:
        # A kind of card says how many GPUs of it there are, not how many cards.
        needs[f"{_ACCELERATOR}{device.accelerator}"] = _ANY_CARD
    if not needs:
        return None
    fitting = [one for one in machines if all(one.get(name, 0) >= n for name, n in needs.items())]
    if device.num_gpus:
        needs["GPU"] = device.num_gpus
    needs.pop(f"{_ACCELERATOR}{device.accelerator}", None)
    needs = needs or {"CPU": 1.0}
    return sum(min(int(one.get(name, 0) // n) for name, n in needs.items()) for one in fitting)


def has_autoscaler() -> bool:
    """Say whether an autoscaler reports to the connected cluster."""
    # There is no public way; what is public asks for an address, and answers with text.
    reply = ray._private.worker.global_worker.gcs_client.get_cluster_status()
    state = GetClusterStatusReply.FromString(reply).autoscaling_state
    return bool(state.autoscaler_state_version)


def grows_untold() -> bool:
    """Say whether the connected cluster has an autoscaler that does not tell what it could add."""
    return _config() is None and has_autoscaler()


def _is_only_gpu() -> bool:
    gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    return gpus == 1 and not has_autoscaler()


def _config() -> Any:
    """Return what an autoscaler says that it could add, None where none says so."""
    return ray._private.state.state.get_cluster_config()


def _offered() -> dict[str, float]:
    """Return the most of each resource on one machine that is there or that could be added."""
    offered: dict[str, float] = {}
    # An autoscaled cluster may be without any worker when a run starts.
    config = _config()
    groups = [group.resources for group in config.node_group_configs] if config else []
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for machine in [*groups, *nodes]:
        for name, amount in machine.items():
            offered[name] = max(offered.get(name, 0.0), amount)
    return {name: amount for name, amount in offered.items() if not name.startswith("node:")}


ANY_MACHINE: Final = Device()
