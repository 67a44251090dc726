"""What kept embeddings cost in bytes, and how near and how fast the labels from them are.

    python -m tests.bench.relabel [scenes] [photos] [images of the rate]

Scenes are synthetic, with the embedded proposer; photos are of the sample data beside the checkout,
if any, with weight-free proposals (contours) of at most 480 pixels. Each is annotated with both
encodings and 72 names; then both are labelled again with 100 names, and compared, pixel by pixel,
with a full run on these. `mask_bytes` is what an image's masks take in Parquet.

The rate is that of `segmill relabel` on a dataset of the compact rows of the scenes, written again
and again under other names: with the start of Ray and the publication, and of the label stage alone
in one process and one thread.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.annotate import annotate
from jobs.annotation_flows import encode_vocabulary, label_stage
from jobs.annotation_plan import AnnotationPlan
from jobs.relabel import relabel
from pipeline.dataset import publish, read_manifest, read_rows
from pipeline.models.device import threads
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.parts import read_row_group, write_part
from pipeline.segments import decode_label_map
from pipeline.synthetic import make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import ANNOTATED_AND_EMBEDDED, EMBEDDED, LABELLED, conform, image_id
from schemas.relabel_config import RelabelConfig
from schemas.vocabulary import read_vocabulary
from tests.bench.scenes import photo_files

SEED = 8_300  # scenes of no training, validation or test range
NAMES = 100
ROWS_PER_PART = 1024


def main() -> None:
    given = [int(value) for value in sys.argv[1:4]]
    scenes, photos, images = given + [60, 24, 4096][len(given) :]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        names = hundred_names(folder / "names.txt")
        for index in range(scenes):
            target = folder / "scenes" / f"{index}.png"
            target.parent.mkdir(exist_ok=True)
            Image.fromarray(make_scene(SEED, index).image_HW3).save(target)
        found["scenes"] = agreement(folder, "scenes", names, {})
        if copy_photos(folder / "photos", photos):
            found["photos"] = agreement(
                folder, "photos", names, {"proposer": "contours", "short_edge": 360}
            )
        found["rate"] = rate(folder, names, images)
    print(json.dumps(found))


def hundred_names(path: Path) -> Path:
    """Write the embedded names and others, in another order."""
    names = list(read_vocabulary(EMBEDDED_VOCABULARY).names)
    names += [f"thing number {n}" for n in range(NAMES - len(names))]
    path.write_text("\n".join(reversed(names)))
    return path


def copy_photos(target: Path, count: int) -> bool:
    target.mkdir()
    for path in photo_files()[:count]:
        shutil.copy(path, target)
    return any(target.iterdir())


def agreement(folder: Path, kind: str, names: Path, settings: dict[str, Any]) -> dict[str, Any]:
    def run(name: str, **changes: Any) -> str:
        output = str(folder / f"{kind}-{name}")
        chosen = {"vocabulary": EMBEDDED_VOCABULARY, **settings, **changes}
        annotate(AnnotateConfig(source=str(folder / kind), output=output, **chosen))
        return output

    full = label_maps(run("full", vocabulary=names))
    found: dict[str, Any] = {"images": len(full)}
    for encoding in ("exact", "compact"):
        output = run(encoding, keep_embeddings=encoding)
        relabel(RelabelConfig(dataset=output, vocabulary=names))
        maps = label_maps(output)
        shares = [float((maps[name] == expected).mean()) for name, expected in full.items()]
        masks, whole = kept_bytes(output)
        found[encoding] = {
            "agreement": round(float(np.mean(shares)), 5),
            "least": round(min(shares), 4),
            "mask_bytes": round(masks / len(full)),
            "bytes": round(whole / len(full)),
        }
    return found


def label_maps(dataset: str) -> dict[str, Any]:
    return {
        row["uri"]: decode_label_map(row["segments"], (row["height"], row["width"]))
        for table in read_rows(dataset, read_manifest(dataset))
        for row in table.to_pylist()
        if row["status"] == LABELLED
    }


def kept_bytes(dataset: str) -> tuple[int, int]:
    """Return what masks take in the files of embeddings, and what all of these take."""
    masks = whole = 0
    for file in read_manifest(dataset).embeddings:
        whole += file.size_bytes
        metadata = pq.ParquetFile(Path(dataset) / file.path).metadata
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                if chunk.path_in_schema in ("mask_logits", "mask_picture"):
                    masks += chunk.total_compressed_size
    return masks, whole


def rate(folder: Path, names: Path, images: int) -> dict[str, Any]:
    dataset = str(folder / "many")
    template = repeated_dataset(str(folder / "scenes-compact"), dataset, images)
    started = time.monotonic()
    result = relabel(RelabelConfig(dataset=dataset, vocabulary=names))
    seconds = time.monotonic() - started
    alone = stage_rate(dataset, names, template)
    return {
        "images": result.changes.done,
        "names": NAMES,
        "mean_pixels": round(float(np.mean([row["height"] * row["width"] for row in template]))),
        "mean_proposals": round(float(np.mean([row["n_proposals"] for row in template])), 1),
        "seconds": round(seconds, 2),
        "images_per_s": round(result.changes.done / seconds, 1),
        "stage_images_per_s_and_core": round(alone, 1),
    }


def repeated_dataset(source: str, target: str, images: int) -> list[dict[str, Any]]:
    """Publish compact rows under as many names as asked for; return those they are made of."""
    manifest = read_manifest(source, 1)
    rows = [
        {**annotated, **stored}
        for file in manifest.embeddings
        for stored in read_row_group(source, file.path, 0).to_pylist()
        for table in read_rows(source, manifest)
        for annotated in table.to_pylist()
        if annotated["image_id"] == stored["image_id"]
    ]
    parts = []
    for start in range(0, images, ROWS_PER_PART):
        numbers = range(start, min(start + ROWS_PER_PART, images))
        copies = [
            {**rows[n % len(rows)], "uri": f"file:///{n}.png", "image_id": image_id(str(n))}
            for n in numbers
        ]
        table = pa.Table.from_pylist(copies, schema=ANNOTATED_AND_EMBEDDED)
        parts.append(write_part(target, "copied", table))
    counts = manifest.counts.model_copy(update={"inventory": images, "labelled": images})
    publish(
        target,
        manifest.model_copy(
            update={
                "counts": counts,
                "images": tuple(part.images for part in parts),
                "embeddings": tuple(part.embeddings for part in parts),
            }
        ),
    )
    return rows


def stage_rate(dataset: str, names: Path, rows: list[dict[str, Any]]) -> float:
    """Return images per second of processor time of the label stage alone."""
    manifest = read_manifest(dataset)
    vocabulary = read_vocabulary(names)
    plan = AnnotationPlan.of(AnnotateConfig.model_validate(manifest.config), vocabulary)
    prompts = (plan.query_prompts, plan.region_prompts)
    label = label_stage(plan, encode_vocabulary(plan.clip, vocabulary, prompts), "run")
    kept = [{name: row[name] for name in EMBEDDED.names} for row in rows]
    table = conform(pa.Table.from_pylist(kept, schema=EMBEDDED), EMBEDDED)
    with threads(1):  # idle ones would spin, and be counted
        label(table)
        started = time.process_time()
        for _ in range(5):
            label(table)
        return 5 * len(table) / (time.process_time() - started)


if __name__ == "__main__":
    main()
