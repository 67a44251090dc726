"""A small published dataset to export: awkward names, a turned photo, holes, ragged borders."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline import packed
from pipeline.dataset import publish
from pipeline.parts import write_images
from pipeline.segments import decode_label_map, encode_segments
from pipeline.storage import full_uri, open_store
from schemas.annotation import ANNOTATED, LABELLED, QUARANTINED, image_id
from schemas.errors import SourceError
from schemas.manifest import Changes, Counts, Manifest
from schemas.vocabulary import Vocabulary

NAMES = ("sky", "cat", 'quote " <tree> & é', "road", "sea")
SIZE = (37, 52)
FILES = ("a b.jpg", "wei rd;\"'<&>.png", "day.1/c.png", "día/turned.jpg", "d.jpg", "e.png")


def publish_ground(folder: Path, files: tuple[str, ...] = FILES, dataset: str = "") -> str:
    """Write images and a dataset of their labels, two rows a file, one row quarantined."""
    rng = np.random.default_rng(3)
    rows = []
    for index, name in enumerate(files):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = SIZE if index % 2 else SIZE[::-1]
        rows.append(_row(rng, path, size, is_turned="turned" in name))
    rows.append(
        _base(folder / "photos" / "broken.jpg")
        | {
            "status": QUARANTINED,
            "error": {"stage": "decode", "code": "corrupt", "message": "why"},
            "segments": [],
        }
    )
    return publish_rows(folder, rows, dataset or str(folder / "labels"))


def publish_packed(folder: Path, images: int, row_group_size: int) -> str:
    """Publish as `publish_ground`, in one file, the labels of images in one Parquet file."""
    rng = np.random.default_rng(4)
    rows, contents = [], []
    for number in range(images):
        path = folder / f"{number}.png"
        uri = f"file://{folder}/photos.parquet#row={number:09}/image"
        rows.append(_row(rng, path, SIZE, False) | {"image_id": image_id(uri), "uri": uri})
        contents.append(path.read_bytes())
    table = pa.table({"image": contents})
    pq.write_table(table, folder / "photos.parquet", row_group_size=row_group_size)
    return publish_rows(folder, rows, str(folder / "labels"), rows_per_file=images)


class ReadRowGroups(list[int]):
    """The row groups of images that are read, in order, while it is in place."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        read = pq.ParquetFile.read_row_group

        def noting(file: pq.ParquetFile, number: int, columns: list[str]) -> pa.Table:
            if columns == ["image"]:
                self.append(number)
            return read(file, number, columns)

        patch.setattr(pq.ParquetFile, "read_row_group", noting)
        patch.setattr(packed, "_row_groups", packed._RowGroups())


def publish_rows(
    folder: Path, rows: list[dict[str, Any]], dataset: str, rows_per_file: int = 2
) -> str:
    parts = [
        write_images(
            dataset, "run-1", pa.Table.from_pylist(rows[start : start + rows_per_file], ANNOTATED)
        )
        for start in range(0, len(rows), rows_per_file)
    ]
    labelled = sum(row["status"] == LABELLED for row in rows)
    counts = {"inventory": len(rows), "labelled": labelled, "quarantined": len(rows) - labelled}
    publish(
        dataset,
        Manifest(
            version=1, created="2026-11-24T00:00:00Z", run_id="run-1", lock=1, fingerprint="f",
            source=str(folder / "photos"), vocabulary=Vocabulary.of(NAMES),
            counts=Counts(**counts, reasons={}),
            changes=Changes(kept=0, done=len(rows), from_embeddings=0, removed=0),
            images=tuple(parts), config={}, models={}, software={},
        ),
    )  # fmt: skip
    return dataset


def lower_limits(dataset: str) -> None:
    """Have the version say that its run took only images smaller than the ones it kept."""
    path = Path(dataset, "_manifest/v000001.json")
    limits = {"max_image_bytes": 100, "max_image_pixels": 10, "max_image_frames": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": limits}))


def ragged_map(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.int64]:
    """Five classes in blots and specks, some pixels of none: pieces, holes, diagonal touches."""
    noise = ndimage.uniform_filter(rng.random((*size, 6)), (3, 3, 0))
    return noise.argmax(axis=2) - 1


def truth_of(row: dict[str, Any]) -> NDArray[np.int32]:
    return decode_label_map(row["segments"], (row["height"], row["width"]))


def _row(
    rng: np.random.Generator, path: Path, size: tuple[int, int], is_turned: bool
) -> dict[str, Any]:
    stored = size[::-1] if is_turned else size
    exif = Image.Exif()
    if is_turned:
        exif[0x0112] = 6
    pixels = rng.integers(0, 256, (*stored, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    classes = ragged_map(rng, size)
    scores = np.where(classes < 0, 0, 0.3 + 0.1 * classes).astype(np.float32)
    segments = encode_segments(classes, scores, NAMES, 0.0)
    return _base(path) | {
        "bytes_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "height": size[0],
        "width": size[1],
        "exif_orientation": 6 if is_turned else 1,
        "status": LABELLED,
        "n_proposals": 5,
        "coverage": float((classes >= 0).mean()),
        "mean_score": 0.5,
        "segments": segments,
    }


def _base(path: Path) -> dict[str, Any]:
    uri = full_uri(*open_store(str(path), SourceError))
    return {
        "image_id": image_id(uri), "uri": uri, "fingerprint": "f", "run_id": "run-1",
        "annotator": "model",
        "n_proposals": 0,
    }  # fmt: skip
