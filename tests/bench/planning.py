"""Seconds and peak memory of planning a run, from ten thousand to ten million images.

    python -m tests.bench.planning [images ...]

A dataset of that many finished rows is made once (its segments empty: a plan does not read them),
then a list of as many images is compared with it, of which 1 % are new and 1 % have changed. Each
size runs in a process of its own, whose peak resident memory is what is told. `list_s` is the part
that reads the list; the rest is the join and the writing of the units of work.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cores import cores
from pipeline.fingerprints import Fingerprints
from pipeline.parts import write_images
from pipeline.planner import Planner
from pipeline.sources import Listing
from schemas.annotation import ANNOTATED, LABELLED, image_id
from schemas.manifest import DataFile

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
ROWS_PER_FILE = 32_768
MEMORY_MB = 1024  # the default of plan_memory_mb
TODAY = Fingerprints(decode="d", proposal="p", embedding="e", label="l")


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
        return
    figures = {}
    for images in map(int, sys.argv[1:] or SIZES):
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder), images)
            command = [sys.executable, "-m", "tests.bench.planning", "--measure", folder]
            run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            figures[str(images)] = json.loads(run.stdout)
            print(images, figures[str(images)], file=sys.stderr, flush=True)
    print(json.dumps({"planning": figures}))


def uri(number: int) -> str:
    return f"s3://bucket/photos/{number // 10_000:06}/{number:010}.jpg"


def write_dataset(folder: Path, images: int) -> None:
    """Write finished rows 0 to n, and a list of which every 100th is new and another changed."""
    files = []
    for start in range(0, images, ROWS_PER_FILE):
        numbers = range(start, min(start + ROWS_PER_FILE, images))
        files.append(write_images(str(folder / "labels"), "run", finished(numbers)))
    (folder / "files.json").write_text(json.dumps([file.model_dump() for file in files]))
    schema = pa.schema([("uri", pa.string()), ("etag", pa.string())])
    with pq.ParquetWriter(folder / "list.parquet", schema) as writer:
        for start in range(0, images, ROWS_PER_FILE):
            numbers = range(start, min(start + ROWS_PER_FILE, images))
            uris = [uri(n if n % 100 else n + images) for n in numbers]
            etags = [f"{n if n % 100 != 1 else -n:032x}" for n in numbers]
            writer.write_table(pa.table({"uri": uris, "etag": etags}, schema))


def finished(numbers: range) -> pa.Table:
    uris = [uri(n) for n in numbers]
    count = len(uris)
    columns = {
        "image_id": [image_id(name) for name in uris],
        "uri": uris,
        "etag": [f"{n:032x}" for n in numbers],
        "status": [LABELLED] * count,
        "fingerprint": [TODAY.label] * count,
        "run_id": ["run"] * count,
        "annotator": ["model"] * count,
        "n_proposals": [100] * count,
        "segments": [[]] * count,
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.array([None] * count, field.type)
        for field in ANNOTATED
    ]
    return pa.Table.from_arrays(arrays, schema=ANNOTATED)


def measure(folder: Path) -> None:
    files = [DataFile(**file) for file in json.loads((folder / "files.json").read_text())]
    started = time.monotonic()
    listing_s = 0.0

    def timed() -> Iterator[pa.Table]:
        nonlocal listing_s
        before = time.monotonic()
        for table in Listing(str(folder / "list.parquet"), ()):
            listing_s += time.monotonic() - before
            yield table
            before = time.monotonic()

    with Planner(TODAY, MEMORY_MB, cores()) as planner:
        planner.add_inventory(timed())
        planner.add_done(str(folder / "labels"), files, (), "published")
        work = planner.left(str(folder / "labels"), "next")
        expected = sum(1 for n in range(planner.images) if n % 100 < 2)
        if work.images != expected:
            raise SystemExit(f"{work.images} images are left, not {expected}")
    figures = {
        "seconds": round(time.monotonic() - started, 1),
        "list_s": round(listing_s, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "left": work.images,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
