"""Ray Data: starting or joining a cluster, single tasks on it, and flows of images through it."""

from pipeline.runtime.connection import cluster
from pipeline.runtime.flow import Flow, Placement, run_flow
from pipeline.runtime.tasks import map_tasks, run_task, stream_tasks

__all__ = [
    "Flow",
    "Placement",
    "cluster",
    "map_tasks",
    "run_flow",
    "run_task",
    "stream_tasks",
]
