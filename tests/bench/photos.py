"""200 photos and 200 COCO photos, from a real S3 server into it, with weight-free proposals.

    python -m tests.bench.photos [folder for a contact sheet]

The labels mean nothing here: the tiny CLIP knows only its own synthetic world. What is shown is
that every image becomes one row, that every label map partitions its image, and that pandas and
DuckDB read the dataset without our code. Needs the sample data beside the checkout.
"""

import json
import os
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import s3fs

from jobs.annotate import annotate
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from schemas.annotate_config import AnnotateConfig
from tests.dataset_checks import check_rows, rows_of
from tests.servers import start_s3


def main() -> None:
    default = Path(__file__).resolve().parents[3] / "shared"
    data = Path(os.environ.get("SEGMILL_SHARED", default)) / "data"
    sources = {
        "photos": sorted((data / "photos").glob("*.JPEG")),
        "coco": sorted((data / "coco128").rglob("*.jpg")),
    }
    with start_s3() as server:
        os.environ.update(server.environment)
        fs = s3fs.S3FileSystem()
        fs.mkdir("corpus")
        figures = {}
        for name, files in sources.items():
            for file in files:
                fs.put_file(str(file), f"corpus/{name}/{file.name}")
            figures[name] = run(fs, name, len(files))
    print(json.dumps(figures))


def run(fs: s3fs.S3FileSystem, name: str, expected: int) -> dict[str, Any]:
    """Annotate one prefix and check what was written."""
    output = f"s3://corpus/labels-{name}"
    started = time.monotonic()
    result = annotate(
        AnnotateConfig(
            source=f"s3://corpus/{name}", output=output, vocabulary=EMBEDDED_VOCABULARY,
            proposer="felzenszwalb",
        )
    )  # fmt: skip
    seconds = time.monotonic() - started
    assert result.counts.inventory == expected > 0
    rows = rows_of(output)
    check_rows(rows, whole=True)
    manifest = json.loads(fs.cat_file(f"{output}/_manifest/v000001.json"))
    files = [f"{output}/{part['path']}" for part in manifest["images"]]
    frame = pd.concat([pd.read_parquet(BytesIO(fs.cat_file(file))) for file in files])
    connection = duckdb.connect()
    connection.register_filesystem(fs)
    counted = connection.execute(
        "select count(*), sum(len(segments)) from read_parquet($files)", {"files": files}
    ).fetchone()
    assert counted is not None and counted[0] == len(frame) == expected
    if len(sys.argv) > 1:
        frame.to_parquet(Path(sys.argv[1]) / f"{name}.parquet")
    return {
        "images": expected,
        "labelled": result.counts.labelled,
        "segments": int(counted[1]),
        "bytes_per_image": sum(part["size_bytes"] for part in manifest["images"]) // expected,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
