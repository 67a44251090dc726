"""Ray Data: starting or joining a cluster, single tasks on it, and flows of images through it."""

from pipeline.runtime.connection import cluster
from pipeline.runtime.flow import Flow, FlowResult, Placement, run_flow
from pipeline.runtime.tasks import map_tasks, run_task, stream_tasks
from pipeline.runtime.worker import Intake, Stage

__all__ = [
    "Flow",
    "FlowResult",
    "Intake",
    "Placement",
    "Stage",
    "cluster",
    "map_tasks",
    "run_flow",
    "run_task",
    "stream_tasks",
]
