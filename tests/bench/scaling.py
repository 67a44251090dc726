"""Whether `segmill simulate` is right: from a run on one simulated node to runs on two to four.

    python -m tests.bench.scaling [images] [nodes]

Every node has four CPUs and two (simulated) GPUs, and all are on this machine; the models are
stages that sleep and then label (`tests/chaos/quick.py`), for a GPU that computes elsewhere leaves
the cores alone too. All else is a run of `annotate` on a Ray cluster. The simulator reads the run
on one node, chooses the sizes of the pools for more nodes, and says how long the images will flow
and how long all will take; these are compared with runs of those sizes.
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
from schemas.simulate_config import SimulateConfig
from tests.bench.engine import SIDE, write_jpegs
from tests.chaos import quick
from tests.cluster.hosts import Cluster

CPUS, GPUS = 4, 2  # of a node
PROPOSE_S, CLASSIFY_S = 0.04, 0.12  # seconds per image
BATCH = 4


def main() -> None:
    given = [int(value) for value in sys.argv[1:3]]
    images, most = given + [1_200, 4][len(given) :]
    with tempfile.TemporaryDirectory(prefix="sc-") as directory:
        folder = Path(directory)
        write_jpegs(folder / "photos", images)
        runs: list[dict[str, Any]] = []
        for nodes in range(1, most + 1):
            actors = runs[0]["plans"][nodes]["actors"] if runs else {"propose": 1, "classify": 1}
            found = run(folder, nodes, actors)
            if nodes == 1:
                found["plans"] = plans(folder / "labels-1", images, most)
            runs.append(found)
            plan = runs[0]["plans"][nodes]
            found["told"] = {
                "nodes": nodes, "actors": actors,
                "predicted_flow_s": round(plan["flow_s"], 1), "flow_s": found["flow_s"],
                "predicted_s": round(plan["seconds"], 1), "seconds": found["seconds"],
                "binds": plan["binds"],
            }  # fmt: skip
            print(found["told"], file=sys.stderr, flush=True)
    told = [found["told"] for found in runs]
    wrong = {
        key: round(max(abs(one[f"predicted_{key}"] / one[key] - 1) for one in told[1:]), 3)
        for key in ("flow_s", "seconds")
        if told[1:]
    }
    print(json.dumps({"scaling": {"images": images, "runs": told, "largest_error": wrong}}))


def run(folder: Path, nodes: int, actors: dict[str, int]) -> dict[str, Any]:
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
                "annotate", str(folder / "photos"), "--output", str(output),
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
    return {"flow_s": round(flow["seconds"], 1), "seconds": round(seconds, 1)}


def plans(dataset: Path, images: int, most: int) -> dict[int, dict[str, Any]]:
    """Return what the simulator says, from the run on one node, of runs on one and more."""
    config = SimulateConfig(
        dataset=str(dataset),
        images=(images,),
        clusters=tuple(f"{CPUS * nodes}x{GPUS * nodes}" for nodes in range(1, most + 1)),
        propose_batch=BATCH,
        classify_batch=BATCH,
        list_page_s=0.0,
    )
    return {
        nodes: {
            "flow_s": run.phases["label"],
            "seconds": run.seconds,
            "actors": dict(run.prediction.sizes),
            "binds": run.binds,
        }
        for nodes, run in enumerate(simulate(config).runs, start=1)
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        quick.without_model_libraries()
        quick.install(PROPOSE_S, CLASSIFY_S)
        sys.exit(segmill(sys.argv[2:]))
    main()
