"""A corpus with bad files, run again, and run again with new images: what each run does.

    python -m tests.bench.incremental [images] [bad share in percent]

Images are 48 x 48 synthetic scenes; weight-free proposals and the embedded CLIP, so that ten
thousand take minutes. Bad files are empty, no image, or cut off. `stage_work` is the number of
images that went through decode, proposals and CLIP, relative to the first run.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.annotate import annotate
from jobs.annotation_run import AnnotateResult
from pipeline.dataset import read_manifest, read_rows
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.synthetic import make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import LABELLED

PICTURES = 40  # distinct ones; a pixel tells the files apart
BAD = {"empty": "empty_file", "text": "not_an_image", "cut": "corrupt"}


def main() -> None:
    given = [int(value) for value in sys.argv[1:3]]
    images, bad_percent = given + [10_000, 5][len(given) :]
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "images", str(Path(folder) / "labels")
        source.mkdir()
        expected = write_images(source, range(images), bad_percent)
        first = timed(source, output)
        rows = outcome(output)
        wrong = [name for name in expected if rows.get(name) != expected[name]]
        again = timed(source, output)
        expected |= write_images(source, range(images, images + images // 100), 0)
        added = timed(source, output)
        rows = outcome(output)
        wrong += [name for name in expected if rows.get(name) != expected[name]]
    print(
        json.dumps(
            {
                "images": images,
                "bad": sum(reason != LABELLED for reason in expected.values()),
                "reasons": first["result"].counts.reasons,
                "wrong_rows": len(wrong),
                "first_s": first["seconds"],
                "again": {"done": again["result"].changes.done, "s": again["seconds"]},
                "one_percent_more": {
                    "done": added["result"].changes.done,
                    "stage_work": added["result"].changes.done / first["result"].changes.done,
                    "s": added["seconds"],
                },
            }
        )
    )


def write_images(source: Path, numbers: range, bad_percent: int) -> dict[str, str]:
    """Write files and return what must become of each: `labelled`, or the reason."""
    expected = {}
    pictures = [Image.fromarray(make_scene(6_100, n).image_HW3) for n in range(PICTURES)]
    small = [picture.resize((48, 48)) for picture in pictures]
    kinds = Counter[str]()
    for number in numbers:
        picture = small[number % PICTURES].copy()
        picture.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        data, name = buffer.getvalue(), f"{number:06}.png"
        expected[name] = LABELLED
        if number * bad_percent // 100 != (number + 1) * bad_percent // 100:
            kind = list(BAD)[kinds.total() % len(BAD)]
            kinds[kind] += 1
            data = {"empty": b"", "text": b"no image", "cut": data[: len(data) // 2]}[kind]
            expected[name] = BAD[kind]
        (source / name).write_bytes(data)
    return expected


def timed(source: Path, output: str) -> dict[str, Any]:
    config = AnnotateConfig(
        source=str(source), output=output, vocabulary=EMBEDDED_VOCABULARY,
        proposer="felzenszwalb", short_edge=32, max_bad_fraction=1.0,
        propose_batch=32, classify_batch=32,
    )  # fmt: skip
    started = time.monotonic()
    result: AnnotateResult = annotate(config)
    print(result, file=sys.stderr, flush=True)
    return {"result": result, "seconds": round(time.monotonic() - started, 1)}


def outcome(output: str) -> dict[str, str]:
    columns = ["uri", "status", "error"]
    return {
        Path(row["uri"]).name: row["error"]["code"] if row["error"] else row["status"]
        for table in read_rows(output, read_manifest(output), columns)
        for row in table.to_pylist()
    }


if __name__ == "__main__":
    main()
