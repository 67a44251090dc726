"""Size and time of the report and of a comparison, on many rows made of the COCO sample.

    python -m tests.bench.look [images] [folder]

The labels are the sample's own, scored at random, so only size, time and memory mean anything. In
the second version one image in ten has lost a class to another and all rows have a new fingerprint,
so that no file is shared. Pages stay in the folder, where one is given.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter

from jobs.diff import diff
from jobs.report import report
from pipeline.dataset import publish, read_manifest
from pipeline.parts import write_images
from pipeline.segments import encode_segments
from schemas.annotation import ANNOTATED, LABELLED, image_id, table_from_rows
from schemas.diff_config import DiffConfig
from schemas.manifest import Changes
from schemas.report_config import ReportConfig
from schemas.vocabulary import Vocabulary
from tests.test_report import quarantined_row, write_dataset

ROWS_PER_FILE = 4096
Row = dict[str, Any]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(folder, count)))


def measure(folder: Path, count: int) -> dict[str, Any]:
    default = Path(__file__).resolve().parents[3] / "shared"
    sample = Path(os.environ.get("SEGMILL_SHARED", default)) / "data" / "coco128"
    dataset = build(sample, folder, count)
    started = time.monotonic()
    page = report(ReportConfig(dataset=dataset, version=1, output=folder / "report.html"))
    report_s = time.monotonic() - started
    both = {"before": f"{dataset}@1", "after": f"{dataset}@2"}
    drift = diff(DiffConfig(**both))
    started = time.monotonic()
    diff(DiffConfig(**both, page=folder / "diff.html"))
    return {
        "images": count,
        "report_mb": round(page.size_bytes / 1e6, 2),
        "report_images": page.images,
        "report_s": round(report_s, 1),
        "diff_s": round(drift.seconds, 2),
        "diff_images_per_s": round(count / drift.seconds),
        "diff_page_s": round(time.monotonic() - started, 1),
        "diff_page_mb": round((folder / "diff.html").stat().st_size / 1e6, 2),
        "moved": drift.images.moved_share,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def build(sample: Path, folder: Path, count: int) -> str:
    """Publish two versions of `count` rows each and return the dataset."""
    names = yaml.safe_load((sample / "classes.yaml").read_text())["classes"]
    order = [value for value in sorted(names) if value]
    vocabulary = Vocabulary.of([names[value] for value in order])
    random = np.random.default_rng(0)
    models = [labels_of(file, order, vocabulary.names, random) for file in photos_of(sample)]
    photos = folder / "photos"
    photos.mkdir()
    first, second = [], []
    for number in range(count):
        file, before, after = models[number % len(models)]
        path = photos / f"{number:06d}-{file.name}"
        path.symlink_to(file)
        uri = f"file://{path}"
        identity = {"image_id": image_id(uri), "uri": uri, "run_id": "run", "annotator": "model"}
        first.append({**identity, "fingerprint": "a", **before})
        second.append({**identity, "fingerprint": "b", **(after if number % 10 == 0 else before)})
    bad = [quarantined_row(f"s3://bucket/{number}.jpg") for number in range(count // 50)]
    parts = [[*first, *bad], [*second, *bad]]
    dataset = write_dataset(folder / "labels", in_files(parts[0]), vocabulary)
    manifest = read_manifest(dataset)
    images = [
        write_images(dataset, "later", table_from_rows(rows, ANNOTATED))
        for rows in in_files(parts[1])
    ]
    # The limits of the run, by which the pages read its images again.
    (Path(dataset) / "_manifest" / "v000001.json").unlink()
    manifest = manifest.model_copy(update={"config": {}})
    publish(dataset, manifest)
    changes = Changes(kept=0, done=count + len(bad), from_embeddings=0, removed=0)
    later = {"version": 2, "images": tuple(images), "changes": changes}
    publish(dataset, manifest.model_copy(update=later))
    return dataset


def in_files(rows: list[Row]) -> list[list[Row]]:
    return [rows[at : at + ROWS_PER_FILE] for at in range(0, len(rows), ROWS_PER_FILE)]


def photos_of(sample: Path) -> list[Path]:
    return sorted((sample / "images").glob("*/*.jpg"))


def labels_of(
    file: Path, order: list[int], names: tuple[str, ...], random: np.random.Generator
) -> tuple[Path, Row, Row]:
    """Return an image with the labels of both versions."""
    truth_HW = np.asarray(Image.open(str(file).replace("/images/", "/masks/")[:-3] + "png"))
    index = np.full(256, -1)
    index[order] = range(len(order))
    labels_HW = index[truth_HW]
    noise_HW = gaussian_filter(random.random(labels_HW.shape), 20)
    noise_HW = (noise_HW - noise_HW.min()) / np.ptp(noise_HW)
    scores_HW = np.where(labels_HW < 0, 0, random.uniform(0.1, 1) * (0.5 + noise_HW / 2))
    present = np.unique(labels_HW[labels_HW >= 0])
    changed_HW = labels_HW
    if present.size:
        lost = random.choice(present)
        gained = random.integers(0, len(names))
        changed_HW = np.where((labels_HW == lost) & (noise_HW > 0.4), gained, labels_HW)
    return file, row(labels_HW, scores_HW, names), row(changed_HW, scores_HW, names)


def row(labels_HW: np.ndarray, scores_HW: np.ndarray, names: tuple[str, ...]) -> Row:
    scores = scores_HW.astype(np.float32)
    segments = encode_segments(np.maximum(labels_HW, 0), scores, names, 0.0, scores)
    area = sum(segment["area"] for segment in segments)
    weighted = sum(segment["score"] * segment["area"] for segment in segments)
    return {
        "height": labels_HW.shape[0],
        "width": labels_HW.shape[1],
        "status": LABELLED,
        "n_proposals": len(segments),
        "coverage": area / labels_HW.size,
        "mean_score": weighted / area if area else None,
        "segments": segments,
    }


if __name__ == "__main__":
    main()
