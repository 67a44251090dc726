"""What our own design takes of the one process that runs it; `segmill simulate` is made of these.

    python -m tests.bench.limits [tasks] [units] [files]

`task_s`: driver and scheduler seconds per task of Ray Data, by the difference of two flows of
stages that do nothing. `unit_s` and `unit_bytes`: from the units of work to the first that could
start, and what the driver's resident memory grows by. `merge_bytes_per_s`: small parts read and
written again as one file, by one core. `file_bytes`: of a manifest, per data file.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline import runtime
from pipeline.parts import Share, merge_images, write_part
from pipeline.planner import UNITS
from pipeline.runtime.flow import units_dataset
from pipeline.segments import encode_segments
from pipeline.synthetic import VOCABULARY, make_scene
from schemas.annotation import ANNOTATED
from tests.bench.planning import finished

SEED = 9_100
ROWS = 4096  # of a part of a large run


def main() -> None:
    given = [int(value) for value in sys.argv[1:4]]
    tasks, units, files = given + [4_000, 20_000, 16][len(given) :]
    with tempfile.TemporaryDirectory(prefix="limits-") as folder:
        found: dict[str, Any] = merging(Path(folder), files)
    with runtime.cluster("local", None, 2):
        found |= handing_over(units) | scheduling(tasks)
    print(json.dumps({"limits": found}))


def merging(folder: Path, files: int) -> dict[str, float]:
    scenes = [make_scene(SEED, index).label_map_HW for index in range(32)]
    ones_HW = np.ones_like(scenes[0], np.float32)
    segments = [encode_segments(scene, ones_HW, VOCABULARY, 0.0) for scene in scenes]
    parts = []
    for number in range(files):
        rows = finished(range(number * ROWS, (number + 1) * ROWS))
        shown = pa.array([segments[n % 32] for n in range(ROWS)], ANNOTATED.field("segments").type)
        where = rows.schema.get_field_index("segments")
        parts.append(write_part(str(folder), "run", rows.set_column(where, "segments", shown)))
    images = [part.images for part in parts]
    size = sum(file.size_bytes for file in images)
    started = time.process_time()
    merge_images(str(folder), "run", [Share(file.path, None) for file in images])
    seconds = time.process_time() - started
    return {
        "merge_bytes_per_s": round(2 * size / seconds),
        "row_bytes": round(size / (files * ROWS)),
        "file_bytes": round(sum(len(f.model_dump_json(indent=2)) + 2 for f in images) / files),
    }


def handing_over(units: int) -> dict[str, float]:
    row = {"path": "_runs/20260101T000000-abcdef/todo/000000.parquet", "row_group": 0}
    table = pa.Table.from_pylist([{**row, "row_group": n} for n in range(units)], schema=UNITS)
    units_dataset(table[:8])  # the first call imports and starts a worker
    before, started = _resident(), time.monotonic()
    kept = units_dataset(table)
    seconds = time.monotonic() - started
    grown = _resident() - before
    del kept
    return {"units": units, "unit_s": seconds / units, "unit_bytes": round(grown / units)}


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def scheduling(tasks: int) -> dict[str, float]:
    """Two chains of one stage and of three, over as many blocks: the difference is two stages."""
    seconds = {}
    for stages in (1, 3):
        rows = ray.data.from_items(list(range(tasks)), override_num_blocks=tasks)
        for number in range(stages):
            rows = rows.map_batches(
                lambda batch: batch, batch_format="pyarrow", memory=1 + number, num_cpus=0.5
            )
        started = time.monotonic()
        for _ in rows.iter_internal_ref_bundles():
            pass
        seconds[stages] = time.monotonic() - started
    return {"tasks": tasks, "task_s": (seconds[3] - seconds[1]) / (2 * tasks)}


if __name__ == "__main__":
    main()
