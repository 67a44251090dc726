"""A soak: scheduled runs, one after the other, on a changing bucket, with random kills.

    python -m tests.cluster.soak [--minutes 60] [--seed 0] [--folder FOLDER]

A cluster of a head and two workers (simulated GPUs, an S3 server over HTTP) stays up. Again and
again the bucket changes, and a run of `annotate` is started as a scheduler would; at a random
moment of most runs something is killed: an actor, a worker of Ray, the driver, or a whole node,
which comes back. Stages are those of `tests/chaos/quick.py`. `segmill status` looks after every
run; now and then old versions are vacuumed. In the end an undisturbed run must make the dataset
what the bucket holds, and `segmill verify` must find it whole; the memory of the head's processes,
which live as long as the cluster, is told as it was in the first and in the last third.

Stories go to stderr; the last line of stdout is JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import s3fs
from PIL import Image

from pipeline.dataset import newest_version, read_manifest, read_rows
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.synthetic import make_scene
from tests.cluster.hosts import Cluster, Host
from tests.processes import Process, family, resident_bytes
from tests.servers import start_s3

SEED: Final = 7_700
SIDE: Final = 48
IMAGES, CHANGES = 120, 12  # in the bucket; added, changed and removed before a run
CPUS, GPUS = 4, 2
RUN_S: Final = 240.0
VACUUM_EVERY: Final = 10
# What a run that was struck may end with: done, cut short, held by another, killed.
ENDS: Final = (0, 1, 3, -signal.SIGKILL)
KILLS: Final = ("actor", "worker", "driver", "node", "nothing")


@dataclass
class Soak:
    """What is at work, and what was seen."""

    folder: Path
    cluster: Cluster
    workers: list[Host]
    rng: random.Random
    pictures: Sequence[bytes]
    held: dict[str, int] = field(default_factory=dict)  # what the bucket holds: name to picture
    names: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    head_mib: list[dict[str, float]] = field(default_factory=list)

    @property
    def output(self) -> str:
        return "s3://soak/labels"

    def change(self) -> None:
        """Add, change and remove some images."""
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        for _ in range(IMAGES if not self.held else CHANGES):
            name = f"{self.names:06}.png"
            self.names += 1
            self.put(fs, name)
        for name in self.rng.sample(sorted(self.held), CHANGES // 3):
            self.put(fs, name)
        while len(self.held) > IMAGES:
            name = self.rng.choice(sorted(self.held))
            fs.rm_file(f"soak/photos/{name}")
            del self.held[name]

    def put(self, fs: s3fs.S3FileSystem, name: str) -> None:
        picture = self.rng.randrange(len(self.pictures))
        fs.pipe_file(f"soak/photos/{name}", self.pictures[picture])
        self.held[name] = picture

    def run(self, kill: str) -> None:
        """Run once as a scheduler does, and kill something after a while."""
        log = self.folder / "run.err"
        with open(log, "wb") as told:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.chaos.driver", "quick",
                    str(self.folder / "progress.log"), "annotate", "s3://soak/photos",
                    "--output", self.output, "--vocabulary", str(EMBEDDED_VOCABULARY),
                    "--address", self.cluster.address, "--proposer", "felzenszwalb",
                    "--short-edge", str(SIDE), "--object-store-mb", "100", "--lock-ttl-s", "10",
                    "--propose-gpus", "1", "--classify-gpus", "1",
                ],
                env=self.cluster.environment, stdout=told, stderr=told,
            )  # fmt: skip
            started, moment = time.monotonic(), self.rng.uniform(8.0, 22.0)
            while process.poll() is None and time.monotonic() < started + moment:
                time.sleep(0.2)
            if process.poll() is None and kill != "nothing":
                self.kills[kill] += 1
                self.strike(kill, process)
            try:
                code = process.wait(RUN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
                self.problems.append(f"a run hung after {kill}")
        said = log.read_text(errors="replace")
        self.ends[code] += 1
        if code not in ENDS:
            self.problems.append(f"exit {code} after {kill}: {said[-1500:]}")
        if "Traceback" in said:
            self.problems.append(f"a traceback after {kill}: {said[-1500:]}")

    def strike(self, kill: str, process: subprocess.Popen[bytes]) -> None:
        if kill == "driver":
            process.kill()
        elif kill == "node":
            host = self.rng.choice(self.workers)
            self.workers.remove(host)
            self.cluster.kill(host)
            self.workers.append(self.cluster.add(CPUS, gpus=GPUS))
        else:
            word = "ray::MapWorker" if kill == "actor" else "ray::"
            found = [
                member
                for host in self.workers
                for member in family(host.process.pid)
                if member.title.startswith(word) and "Agent" not in member.title
            ]
            if found:
                self.rng.choice(sorted(found, key=lambda one: one.pid)).send(signal.SIGKILL)

    def segmill(self, *words: str, ends: Sequence[int] = (0,)) -> str:
        """Run a command of ours, which must end as it should."""
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *words],
            env=self.cluster.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode not in ends:
            self.problems.append(f"{words[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
        return done.stdout.strip()

    def measure(self, head: Host) -> None:
        """Note the memory of the head's processes, which live as long as the cluster."""
        sizes: dict[str, float] = defaultdict(float)
        for member in family(head.process.pid):
            sizes[_name(member)] += resident_bytes(member.pid) / 2**20
        self.head_mib.append({name: round(size, 1) for name, size in sizes.items() if name})

    def judge(self) -> None:
        """Compare the newest version with the bucket."""
        manifest = read_manifest(self.output)
        rows = [
            row
            for table in read_rows(self.output, manifest, ["uri", "etag", "status"])
            for row in table.to_pylist()
        ]
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        listed = fs.ls("soak/photos", detail=True, refresh=True)
        expected = {f"s3://{one['name']}": one["ETag"].strip('"') for one in listed}
        found = {row["uri"]: (row["etag"] or "").strip('"') for row in rows}
        if found != expected or len(rows) != len(expected):
            self.problems.append(f"{len(rows)} rows of {len(expected)} images, or of other ones")
        if any(row["status"] != "labelled" for row in rows):
            self.problems.append("an image was quarantined")


def _name(member: Process) -> str:
    words = member.title.split()
    if not words:
        return ""
    name = Path(words[0]).name
    if name.startswith("python"):
        scripts = [word for word in words[1:] if not word.startswith("-")]
        return Path(scripts[0]).stem if scripts else name
    return name


def _png(index: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(make_scene(SEED, index).image_HW3).resize((SIDE, SIDE)).save(buffer, "png")
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.soak", allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where everything is written")
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="so-"))
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(chosen.seed)
    with ExitStack() as stack:
        server = stack.enter_context(start_s3())
        os.environ.update(server.environment)
        s3fs.S3FileSystem().mkdir("soak")
        cluster = stack.enter_context(Cluster(folder / "ray"))
        head = cluster.start_head()
        workers = [cluster.add(CPUS, gpus=GPUS) for _ in range(2)]
        soak = Soak(folder, cluster, workers, rng, [_png(index) for index in range(24)])
        until = time.monotonic() + 60 * chosen.minutes
        runs = 0
        while time.monotonic() < until:
            soak.change()
            kill = KILLS[rng.randrange(len(KILLS))]
            soak.run(kill)
            runs += 1
            soak.segmill("status", soak.output, "--max-age-hours", "1", ends=(0, 1))
            if runs % VACUUM_EVERY == 0 and newest_version(soak.output):
                soak.segmill("vacuum", soak.output, "--delete", ends=(0, 3))
            soak.measure(head)
            print(
                f"{runs}: {kill}, ends {dict(soak.ends)}, head {soak.head_mib[-1]}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        # A lock of a run that was killed last is waited out.
        _until(lambda: _ends_well(soak))
        soak.judge()
        verified = soak.segmill("verify", soak.output)
        status = soak.segmill("status", soak.output, "--max-age-hours", "1")
    first, last = (_mean(part) for part in _ends_of(soak.head_mib))
    figures = {
        "minutes": chosen.minutes,
        "runs": runs,
        "ends": {str(code): count for code, count in sorted(soak.ends.items())},
        "kills": dict(soak.kills),
        "versions": json.loads(verified.splitlines()[-1])["version"] if verified else None,
        "verify_problems": json.loads(verified.splitlines()[-1])["problems"] if verified else None,
        "status": bool(status),
        "head_mib_first_third": first,
        "head_mib_last_third": last,
        "problems": len(soak.problems),
    }
    print("\n".join(soak.problems), file=sys.stderr)
    print(json.dumps(figures))
    return 1 if soak.problems else 0


def _ends_well(soak: Soak) -> bool:
    before = soak.ends[0]
    soak.run("nothing")
    return soak.ends[0] > before


def _until(holds: Callable[[], bool]) -> None:
    for _ in range(5):
        if holds():
            return
        time.sleep(5)


def _ends_of(samples: list[dict[str, float]]) -> tuple[list[Any], list[Any]]:
    third = max(1, len(samples) // 3)
    return samples[:third], samples[-third:]


def _mean(samples: list[dict[str, float]]) -> dict[str, float]:
    names = {name for sample in samples for name in sample}
    return {
        name: round(sum(sample.get(name, 0.0) for sample in samples) / len(samples), 1)
        for name in sorted(names)
    }


if __name__ == "__main__":
    sys.exit(main())
