"""Whether `segmill simulate` is right: from a run on one simulated node to runs on two to four.

    python -m tests.bench.scaling [images per node] [nodes]

Every node has four CPUs and two (simulated) GPUs, and all are on this machine; the models are
stages that sleep and then label (`tests/chaos/quick.py`), for a GPU that computes elsewhere leaves
the cores alone too. All else is a run of `annotate` on a Ray cluster. The simulator reads the run
on one node, chooses the sizes of the pools for more nodes and as many times the images, and says
how long these will flow and how long all will take; that is compared with runs of those sizes.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.cli import main as segmill
from jobs.simulate import simulate
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.simulation import Simulated
from schemas.simulate_config import SimulateConfig
from tests.bench.engine import SIDE, write_jpegs
from tests.chaos import quick
from tests.cluster.hosts import Cluster

CPUS, GPUS = 4, 2  # of a node
PROPOSE_S, CLASSIFY_S = 0.04, 0.12  # seconds per image
BATCH = 4


def main() -> None:
    given = [int(value) for value in sys.argv[1:3]]
    images, most = given + [800, 4][len(given) :]
    told: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sc-") as directory:
        folder = Path(directory)
        for nodes in range(1, most + 1):
            write_jpegs(folder / f"photos-{nodes}", images * nodes)
            plan = simulated(folder / "labels-1", images * nodes, nodes) if told else None
            actors = dict(plan.prediction.sizes) if plan else {"propose": 1, "classify": 1}
            flow_s, seconds = run(folder, nodes, actors)
            plan = plan or simulated(folder / "labels-1", images, 1)
            told.append(
                {
                    "nodes": nodes, "images": images * nodes, "actors": actors,
                    "binds": plan.binds,
                    "predicted_flow_s": round(plan.phases["label"], 1), "flow_s": flow_s,
                    "predicted_s": round(plan.seconds, 1), "seconds": seconds,
                }
            )  # fmt: skip
            print(told[-1], file=sys.stderr, flush=True)
    wrong = [one["predicted_flow_s"] / one["flow_s"] - 1 for one in told]
    largest = round(max(wrong, key=abs), 3)
    print(json.dumps({"scaling": {"runs": told, "largest_flow_error": largest}}))


def run(folder: Path, nodes: int, actors: dict[str, int]) -> tuple[float, float]:
    """Label all photos on so many nodes; return the seconds that images flowed, and of all."""
    output = folder / f"labels-{nodes}"
    with Cluster(folder / f"ray-{nodes}") as cluster:
        cluster.start_head()
        for _ in range(nodes):
            cluster.add(CPUS, gpus=GPUS)
        started = time.monotonic()
        subprocess.run(
            [
                sys.executable, "-m", "tests.bench.scaling", "--drive",
                "annotate", str(folder / f"photos-{nodes}"), "--output", str(output),
                "--vocabulary", str(EMBEDDED_VOCABULARY), "--address", cluster.address,
                "--short-edge", str(SIDE), "--object-store-mb", "200",
                "--propose-batch", str(BATCH), "--classify-batch", str(BATCH),
                "--propose-actors", str(actors["propose"]),
                "--classify-actors", str(actors["classify"]),
            ],
            env=cluster.environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.monotonic() - started
    (record,) = output.glob("_runs/*/end.json")
    (flow,) = json.loads(record.read_text())["meter"]["flows"]
    return round(flow["seconds"], 1), round(seconds, 1)


def simulated(dataset: Path, images: int, nodes: int) -> Simulated:
    """Return what the simulator says of a run on so many nodes, from that on one."""
    config = SimulateConfig(
        dataset=str(dataset),
        images=(images,),
        clusters=(f"{CPUS * nodes}x{GPUS * nodes}",),
        propose_batch=BATCH,
        classify_batch=BATCH,
        list_page_s=0.0,
    )
    (run,) = simulate(config).runs
    return run


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        quick.without_model_libraries()
        quick.install(PROPOSE_S, CLASSIFY_S)
        sys.exit(segmill(sys.argv[2:]))
    main()
