"""Peak memory of a whole run, all its processes together, for 200 and for 2,000 images.

    python -m tests.bench.memory [small] [large]

Memory is the proportional set size (shared pages counted once) of the command and everything it
started, sampled twice a second. Images are 240 x 320 JPEG files of synthetic scenes; decode,
proposals, CLIP and writing are the real ones with the embedded models.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.synthetic import make_scene
from tests.processes import family

SCENES = 20  # distinct pictures; every file is one of them under its own name
INTERVAL_S = 0.5


def main() -> None:
    small, large = (int(value) for value in sys.argv[1:3] or ("200", "2000"))
    with tempfile.TemporaryDirectory() as folder:
        pictures = [make_scene(6_000, index).image_HW3 for index in range(SCENES)]
        figures = {}
        for count in (small, large):
            source = Path(folder) / f"images-{count}"
            source.mkdir()
            for index in range(count):
                picture = Image.fromarray(pictures[index % SCENES]).resize((320, 240))
                picture.save(source / f"{index:06}.jpg", quality=90)
            figures[count] = measure(source, Path(folder) / f"labels-{count}")
    (peak_small, seconds_small), (peak_large, seconds_large) = figures.values()
    print(
        json.dumps(
            {
                "images": [small, large],
                "peak_mib": [round(peak_small / 2**20), round(peak_large / 2**20)],
                "peak_ratio": round(peak_large / peak_small, 3),
                "seconds": [round(seconds_small, 1), round(seconds_large, 1)],
            }
        )
    )


def measure(source: Path, output: Path) -> tuple[int, float]:
    """Annotate `source` in a process of its own; return peak bytes and seconds."""
    command = [sys.executable, "-m", "jobs.cli", "annotate", str(source)]
    command += ["--vocabulary", str(EMBEDDED_VOCABULARY), "--output", str(output)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(proportional_bytes(member.pid) for member in family(process.pid)))
        time.sleep(INTERVAL_S)
    if process.returncode:
        raise SystemExit(f"annotate ended with {process.returncode}")
    return peak, time.monotonic() - started


def proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
