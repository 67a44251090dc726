"""Take a machine out of a Ray cluster's service before it goes."""

import logging
import time

import ray
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from pipeline.cluster_token import use_token
from schemas.errors import SettingsError


def drain_this_machine(address: str, reason: str, seconds: float) -> str:
    """Let Ray put no new work on this machine's node, which ends in `seconds`; return its id.

    Tasks that run go on; Ray counts the deaths of actors there as nobody's fault. Raises
    SettingsError where no Ray runs on this machine, or the cluster refuses.
    """
    use_token()
    try:
        # A driver joins a cluster through the node of its own machine.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = (str(error).strip().splitlines() or [""])[0]
        raise SettingsError(f"Ray at {address!r} cannot be joined from here: {why}") from None
    try:
        node_id = str(ray.get_runtime_context().get_node_id())
        # There is no public way; `ray drain-node` does the same.
        accepted, refusal = ray._private.worker.global_worker.gcs_client.drain_node(
            node_id, DRAIN_NODE_REASON_PREEMPTION, reason, int((time.time() + seconds) * 1000)
        )
    finally:
        ray.shutdown()
    if not accepted:
        raise SettingsError(f"Ray does not drain node {node_id}: {refusal}")
    return node_id
