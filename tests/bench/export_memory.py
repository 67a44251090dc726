"""Peak memory of an export of 200 and of 2,000 images, and what killing it costs.

    python -m tests.bench.export_memory [small] [large] [format]

Memory is the proportional set size (shared pages counted once) of the command and everything it
started, sampled four times a second. `halves_mib` are the means over both halves of the large
export, its start left out: the peak alone says little, for memory swings with what allocators keep,
and the longer one looks the higher is the highest. Images are 240 x 320 JPEG files; labels are
ragged, a few hundred pieces an image. The large export is then made again and killed (SIGKILL) when
a third of its shards are done, and run once more: the files must be equal, and finished shards not
done twice.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.segments import encode_segments
from pipeline.storage import full_uri, open_store
from schemas.annotation import LABELLED, image_id
from schemas.errors import SourceError
from tests.bench.memory import proportional_bytes
from tests.export_ground import NAMES, publish_rows, ragged_map
from tests.processes import family

DRAWN = 20  # distinct pictures; every file is one of them under its own name
PER_SHARD = 200
INTERVAL_S = 0.25
START_SAMPLES = 20


def main() -> None:
    small, large = (int(value) for value in sys.argv[1:3] or ("200", "2000"))
    name = sys.argv[3] if len(sys.argv) > 3 else "coco-instances"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples: dict[int, list[int]] = {}
        seconds = {}
        for count in (small, large):
            dataset = publish(root / str(count), count)
            samples[count], seconds[count] = measure(dataset, root / f"export-{count}", name)
        shards = -(-large // PER_SHARD)
        kept = kill_and_go_on(str(root / str(large) / "labels"), root / "cut", name, shards)
        equal = digests(root / "cut") == digests(root / f"export-{large}")
    later = samples[large][START_SAMPLES:]
    halves = later[: len(later) // 2], later[len(later) // 2 :]
    print(
        json.dumps(
            {
                "format": name,
                "images": [small, large],
                "peak_mib": [round(max(values) / 2**20) for values in samples.values()],
                "peak_ratio": round(max(samples[large]) / max(samples[small]), 3),
                "halves_mib": [round(float(np.mean(half)) / 2**20) for half in halves],
                "seconds": [round(value, 1) for value in seconds.values()],
                "killed": {"shards": shards, "kept": kept, "equal": equal},
            }
        )
    )


def publish(folder: Path, count: int) -> str:
    """Write images and a dataset of their labels."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    size = (240, 320)
    drawn = []
    for _ in range(DRAWN):
        picture = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((320, 240))
        classes = ragged_map(rng, size)
        segments = encode_segments(classes, np.ones(size, np.float32), NAMES, 0.0)
        drawn.append((picture, segments))
    rows = []
    for index in range(count):
        picture, segments = drawn[index % DRAWN]
        path = folder / "photos" / f"{index:06}.jpg"
        picture.save(path, quality=90)
        uri = full_uri(*open_store(str(path), SourceError))
        rows.append(
            {
                "image_id": image_id(uri), "uri": uri, "fingerprint": "f", "run_id": "run-1",
                "annotator": "model",
                "bytes_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "height": size[0], "width": size[1], "exif_orientation": 1, "status": LABELLED,
                "n_proposals": 5, "coverage": 1.0, "mean_score": 1.0, "segments": segments,
            }
        )  # fmt: skip
    return publish_rows(folder, rows, str(folder / "labels"), rows_per_file=4096)


def command(dataset: str, output: Path, name: str) -> list[str]:
    words = [sys.executable, "-m", "jobs.cli", "export", dataset, "--output", str(output)]
    words += ["--format", name, "--images-per-shard", str(PER_SHARD), "--workers", "1"]
    return words


def start(dataset: str, output: Path, name: str) -> "subprocess.Popen[bytes]":
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(dataset, output, name), **silent)


def measure(dataset: str, output: Path, name: str) -> tuple[list[int], float]:
    """Export in a process of its own; return the bytes of all samples and the seconds."""
    started = time.monotonic()
    process = start(dataset, output, name)
    samples = []
    while process.poll() is None:
        samples.append(sum(proportional_bytes(member.pid) for member in family(process.pid)))
        time.sleep(INTERVAL_S)
    if process.returncode:
        raise SystemExit(f"export ended with {process.returncode}")
    return samples, time.monotonic() - started


def kill_and_go_on(dataset: str, output: Path, name: str, shards: int) -> int:
    """Kill an export when a third of its shards are done; return how many it then kept."""
    process = start(dataset, output, name)
    records = output / "_export" / "shards"
    while len(list(records.glob("*.json"))) < shards // 3:
        if process.poll() is not None:
            raise SystemExit("the export was done before it could be killed")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command(dataset, output, name), stdout=subprocess.PIPE, check=True)
    kept: int = json.loads(done.stdout)["shards_kept"]
    return kept


def digests(folder: Path) -> dict[str, Any]:
    """All files of an export but its manifest, which tells the time."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "export.json"
    }


if __name__ == "__main__":
    main()
