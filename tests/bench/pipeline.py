"""The pipeline against its own stages run bare, and against a plain Ray Data script.

    python -m tests.bench.pipeline [photos]

Photos of the sample data with their shorter side at 320, regions of contours, and a CLIP ViT-B/32
of full size with random weights: CLIP takes nearly all of the time. All three ways get the same
photos and models on the same cores.

`pipeline_over_bare_stages` is images per second of a run of `annotate`, from warm pools to the last
write, over that of its own stages called one after the other in one process, from the first fetch
to the last row, models loaded before. `naive_ray_ratio` is seconds of the plain script
(`tests/bench/naive.py`) over seconds of `segmill annotate`, whole processes both, start of Ray and
loading included.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from jobs.annotation_flows import Stages, encode_vocabulary
from jobs.annotation_plan import AnnotationPlan
from pipeline.cores import cores
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import ANNOTATED, QUARANTINED
from schemas.vocabulary import read_vocabulary
from tests.bench.scenes import photo_files, write_copies

SHORT_EDGE = 320
BATCH = 8


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        folder = Path(directory)
        files = photo_files(needed=True)
        chosen = [files[index * 7 % len(files)].read_bytes() for index in range(count)]
        write_copies(folder / "photos", chosen, count)
        torch.manual_seed(0)
        save_file(open_clip.create_model("ViT-B-32").state_dict(), folder / "clip.safetensors")
        settings = {
            "source": str(folder / "photos"), "vocabulary": str(EMBEDDED_VOCABULARY),
            "output": str(folder / "labels"), "clip": "ViT-B-32",
            "clip_weights": str(folder / "clip.safetensors"), "short_edge": SHORT_EDGE,
            "proposer": "contours",
        }  # fmt: skip
        naive_s = naive(folder)
        whole_s, flow = pipeline(settings)
        bare_s = bare(AnnotateConfig.model_validate(settings), folder / "bare.parquet")
    figures = {
        "pipeline_over_bare_stages": round(bare_s / flow["seconds"], 3),
        "naive_ray_ratio": round(naive_s / whole_s, 3),
        "photos": count,
        "cores": cores(),
        "seconds": {
            "bare": round(bare_s, 1), "flow": round(flow["seconds"], 1),
            "segmill": round(whole_s, 1), "naive": round(naive_s, 1),
        },
        "utilisation": flow["utilisation"],
    }  # fmt: skip
    print(json.dumps({"pipeline": figures}))


def bare(config: AnnotateConfig, output: Path) -> float:
    """Return the seconds that the stages take in this process, all cores theirs."""
    torch.set_num_threads(cores())
    plan = AnnotationPlan.of(config)
    texts = encode_vocabulary(plan.clip, plan.vocabulary, (plan.query_prompts, plan.region_prompts))
    stages = Stages.of(plan, texts, "bare")
    stages.propose.warm_up()
    stages.classify.warm_up()
    started = time.monotonic()
    with pq.ParquetWriter(output, ANNOTATED) as writer:
        for listed in plan.listing():
            for batch in listed.to_batches(BATCH):
                decoded = stages.fetch(pa.Table.from_batches([batch]))
                writer.write_table(stages.classify(stages.propose(decoded)))
    seconds = time.monotonic() - started
    assert QUARANTINED not in pq.read_table(output, columns=["status"])["status"].to_pylist()
    return seconds


def pipeline(settings: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a whole run, and what it measured of its flow."""
    flags = [
        word
        for name, value in settings.items()
        if name != "source"
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    segmill = str(Path(sys.executable).with_name("segmill"))
    command = [segmill, "annotate", settings["source"], *flags]
    seconds = timed(command)
    (record,) = Path(settings["output"]).glob("_runs/*/end.json")
    (flow,) = json.loads(record.read_text())["meter"]["flows"]
    shares = {
        stage["name"]: round(stage["busy_s"] / stage["worker_s"], 3) for stage in flow["stages"]
    }
    return seconds, {"seconds": flow["seconds"], "utilisation": shares}


def naive(folder: Path) -> float:
    """Return the seconds of the plain script."""
    (folder / "names.txt").write_text("\n".join(read_vocabulary(EMBEDDED_VOCABULARY).names))
    return timed(
        [
            sys.executable, "-m", "tests.bench.naive", str(folder / "photos"),
            str(folder / "naive"), str(folder / "clip.safetensors"), str(folder / "names.txt"),
            str(SHORT_EDGE),
        ]
    )  # fmt: skip


def timed(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
