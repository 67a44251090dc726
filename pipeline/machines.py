"""What work needs of the machine that it lands on, and what the machines of a cluster offer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ray

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
