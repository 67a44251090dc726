"""What our own design takes of the one process that runs it; `segmill simulate` is made of these.

    python -m tests.bench.limits [tasks] [units] [files]

`task_s`: seconds of the driver per task of Ray Data, by the difference of two flows of stages that
do nothing. `unit_s` and `unit_bytes`: from the units of work to the first that could
start, and what the driver's resident memory grows by. `merge_bytes_per_s`: small parts read and
written again as one file, by one core. `file_bytes`: of a manifest, per data file.
"""

import json
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
from pipeline.runtime.flow import units_dataset
from pipeline.segments import encode_segments
from pipeline.synthetic import VOCABULARY, make_scene
from pipeline.work_units import UNITS
from schemas.annotation import ANNOTATED
from tests.bench.planning import finished
from tests.processes import resident_bytes

SEED = 9_100
SCENES = 1024


def main() -> None:
    given = [int(value) for value in sys.argv[1:4]]
    tasks, units, files = given + [1_000, 10_000, 8][len(given) :]
    with tempfile.TemporaryDirectory(prefix="limits-") as folder:
        found: dict[str, Any] = merging(Path(folder), files)
    with runtime.cluster("local", None, 2):
        found |= handing_over(units) | scheduling(tasks)
    print(json.dumps({"limits": found}))


def merging(folder: Path, files: int) -> dict[str, float]:
    rows = SCENES // files
    kind = ANNOTATED.field("segments").type
    images = []
    for number in range(files):
        scenes = [make_scene(SEED, number * rows + index).label_map_HW for index in range(rows)]
        segments = [
            encode_segments(scene, np.ones(scene.shape, np.float32), VOCABULARY, 0.0)
            for scene in scenes
        ]
        table = finished(range(number * rows, (number + 1) * rows))
        where = table.schema.get_field_index("segments")
        table = table.set_column(where, "segments", pa.array(segments, kind))
        images.append(write_part(str(folder), "run", table).images)
    size = sum(file.size_bytes for file in images)
    started = time.process_time()
    merge_images(str(folder), "run", [Share(file.path, None) for file in images])
    seconds = time.process_time() - started
    return {
        "merge_bytes_per_s": round(2 * size / seconds),
        "merge_images_per_s": round(SCENES / seconds),
        "row_bytes": round(size / SCENES),
        "file_bytes": round(sum(len(f.model_dump_json(indent=2)) + 2 for f in images) / files),
    }


def handing_over(units: int) -> dict[str, float]:
    row = {"path": "_runs/20260101T000000-abcdef/todo/000000.parquet", "row_group": 0}
    table = pa.Table.from_pylist([{**row, "row_group": n} for n in range(units)], schema=UNITS)
    units_dataset(table[:8])  # the first call imports and starts a worker
    before, started = resident_bytes(), time.monotonic()
    kept = units_dataset(table)
    seconds = time.monotonic() - started
    grown = resident_bytes() - before
    del kept
    return {"units": units, "unit_s": seconds / units, "unit_bytes": round(grown / units)}


def scheduling(tasks: int) -> dict[str, float]:
    """Two chains of one stage and of three, over as many blocks: the difference is two stages.

    Processor time of the driver alone: what the workers take is on other machines.
    """
    seconds = {}
    for stages in (1, 3):
        rows = ray.data.from_items(list(range(tasks)), override_num_blocks=tasks)
        for number in range(stages):
            rows = rows.map_batches(
                lambda batch: batch, batch_format="pyarrow", memory=1 + number, num_cpus=0.5
            )
        started = time.process_time()
        for _ in rows.iter_internal_ref_bundles():
            pass
        seconds[stages] = time.process_time() - started
    return {"tasks": tasks, "task_s": (seconds[3] - seconds[1]) / (2 * tasks)}


if __name__ == "__main__":
    main()
