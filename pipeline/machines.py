"""What work needs of the machine that it lands on, and what the machines of a cluster offer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray

from pipeline.pool_sizes import Offer
from schemas.errors import SettingsError

_ACCELERATOR: Final = "accelerator_type:"  # Ray's resource of machines with such a card
_ANY_CARD: Final = 0.001  # what Ray takes of it
_EVERYWHERE: Final = {"CPU", "memory", "object_store_memory"}


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

        Raises SettingsError for what the cluster neither has nor may add: it would be waited for.
        """
        offered = _offered()
        if num_gpus is None:
            num_gpus = 1.0 if offered.get("GPU", 0) else 0.0
        kinds = [f"{_ACCELERATOR}{accelerator}"] if accelerator else []
        for name in [*resources, *kinds]:
            if offered.get(name, 0) < resources.get(name, _ANY_CARD):
                known = ", ".join(sorted(set(offered) - _EVERYWHERE)) or "none"
                raise SettingsError(
                    f"the cluster offers no {name!r} on any machine, nor would its autoscaler; "
                    f"there are {known}"
                )
        return cls(num_gpus, accelerator, resources)

    @property
    def options(self) -> dict[str, Any]:
        """What Ray calls it."""
        kind = {"accelerator_type": self.accelerator} if self.accelerator else {}
        return {"num_gpus": self.num_gpus, "resources": dict(self.resources), **kind}


def offer(devices: Sequence[Device]) -> tuple[Offer, list[int | None]]:
    """Return what the connected cluster has, or may add, in all; and how many of each device.

    The latter is None for a device that any machine has room for.
    """
    config = ray._private.state.state.get_cluster_config()
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


def _offered() -> dict[str, float]:
    """Return the most of each resource on one machine that is there or that could be added."""
    offered: dict[str, float] = {}
    # An autoscaled cluster may be without any worker when a run starts.
    config = ray._private.state.state.get_cluster_config()
    groups = [group.resources for group in config.node_group_configs] if config else []
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for machine in [*groups, *nodes]:
        for name, amount in machine.items():
            offered[name] = max(offered.get(name, 0.0), amount)
    return {name: amount for name, amount in offered.items() if not name.startswith("node:")}


ANY_MACHINE: Final = Device()
