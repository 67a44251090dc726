"""What benchmarks share: synthetic scenes as stages take them, and the embedded models."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.models import find_proposer
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings
from pipeline.prompts import SINGLE, text_classifier
from pipeline.resize import resize_image, resized_size
from pipeline.segments import decode_label_map
from pipeline.stages.classify import Classify
from pipeline.synthetic import class_names, make_scene, seen_flags
from schemas.annotation import DECODED, LABELLED, table_from_rows
from schemas.vocabulary import Vocabulary
from tests.classify import make_classify

LabelMap = NDArray[np.integer[Any]]


def photo_files(*, needed: bool = False) -> list[Path]:
    """Return the photos of the sample data; none, or an end if they are needed, without it."""
    default = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("SEGMILL_SHARED", default)) / "data" / "photos"
    files = sorted(folder.glob("*.JPEG"))
    if needed and not files:
        raise SystemExit(f"no photos in {folder}; SEGMILL_SHARED names the sample data")
    return files


def write_copies(folder: Path, files: Sequence[bytes], count: int) -> None:
    """Write so many JPEGs into a new folder, the files again and again."""
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:06}.jpg").write_bytes(files[index % len(files)])


def decoded(seed: int, count: int) -> pa.Table:
    """Return the DECODED rows of scenes, as the fetch stage would make them."""
    card = find_proposer("maskformer").describe(None)
    rows = []
    for index in range(count):
        picture = make_scene(seed, index).image_HW3
        height, width = picture.shape[:2]
        size = resized_size((height, width), card.short_edge, card.long_edge)
        rows.append(
            {
                "image_id": str(index), "uri": str(index), "height": height, "width": width,
                "status": LABELLED, "image_height": size[0], "image_width": size[1],
                "image": resize_image(Image.fromarray(picture), size).tobytes(),
            }
        )  # fmt: skip
    return table_from_rows(rows, DECODED)


def embedded_classify(clip_precision: str = "fp32", **changes: Any) -> Classify:
    """Return the classify stage with the embedded CLIP and the settings chosen for it."""
    source = ClipSource.of("embedded", None, clip_precision)
    text_KD = text_classifier(Clip.load(source).encode_text, Vocabulary.of(class_names()), SINGLE)
    settings: dict[str, Any] = {
        "regions": CropSettings(mask_threshold=0.6), "crop_batch": 256, "seen": seen_flags(),
        "ensemble_weight": 0.7, "precision": "float32",
        "divisor": find_proposer("maskformer").describe(None).divisor,
    }  # fmt: skip
    return make_classify(source, text_KD, class_names(), **settings | changes)


def label_maps(classify: Classify, proposed: pa.Table) -> list[LabelMap]:
    """Return the label map of every image; each must have been labelled."""
    rows = classify(proposed).to_pylist()
    assert all(row["status"] == LABELLED for row in rows)
    return [decode_label_map(row["segments"], (row["height"], row["width"])) for row in rows]


def agreement(first: Sequence[LabelMap], second: Sequence[LabelMap]) -> float:
    """Return the share of all pixels that carry one label in both."""
    equal = sum(int(np.sum(one == other)) for one, other in zip(first, second, strict=True))
    return equal / sum(label_map.size for label_map in first)
