"""Hugging Face: Parquet files with the images in them, for `datasets.load_dataset(DIRECTORY)`.

    README.md                                  the card: which files are which split
    data/SPLIT-00000-of-00012.parquet          image, mask, image_id, uri, classes, scores
    id2label.json

Masks are grey PNGs of class indices; 255 is ignored (16 bits from 256 classes).
"""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.exports.formats import ExportFormat
from pipeline.exports.masks import encode_labels
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from schemas.export_manifest import ExportCounts

_ROWS: Final = 32  # of a row group: as many images are in memory
_FILE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA: Final = pa.schema(
    [
        ("image", _FILE),
        ("mask", _FILE),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("classes", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float32())),
    ]
)


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps(_features(shard.export))})
    with ExitStack() as files:
        writers: dict[str, pq.ParquetWriter] = {}
        waiting: dict[str, list[dict[str, Any]]] = {}

        def flush(split: str) -> None:
            if split not in writers:
                file = files.enter_context(shard.export.open(f"data/{split}-{shard.label}.parquet"))
                writers[split] = files.enter_context(pq.ParquetWriter(file, schema))
            writers[split].write_table(pa.Table.from_pylist(waiting.pop(split), schema))

        for image in images:
            waiting.setdefault(image.split, []).append(_row(image, shard.export.ignore))
            if len(waiting[image.split]) == _ROWS:
                flush(image.split)
        for split in list(waiting):
            flush(split)


def _row(image: ExportImage, ignore: int) -> dict[str, Any]:
    mask = encode_labels(image.label_map(ignore), ignore)
    picture = image.picture
    return {
        "image": {"bytes": picture and picture.data, "path": image.file_name.rpartition("/")[2]},
        "mask": {"bytes": mask, "path": f"{image.name}.png"},
        "image_id": image.image_id,
        "uri": image.uri,
        "classes": [segment.class_index for segment in image.segments],
        "scores": [segment.score for segment in image.segments],
    }


def _features(export: Export) -> dict[str, Any]:
    """Return what `datasets` finds in the file and makes its features of."""
    text = {"dtype": "string", "_type": "Value"}
    return {
        "info": {
            "features": {
                "image": {"_type": "Image"},
                "mask": {"_type": "Image"},
                "image_id": text,
                "uri": text,
                "classes": {
                    "feature": {"names": list(export.classes), "_type": "ClassLabel"},
                    "_type": "List",
                },
                "scores": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
            }
        }
    }


def _finish(export: Export, counts: ExportCounts) -> None:
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in counts.splits]
    card = {
        "task_categories": ["image-segmentation"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    head = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    text = f"Pseudo-labels of {export.dataset}, version {export.version}, by Segmill."
    export.write("README.md", f"---\n{head}---\n\n{text}\n".encode())
    export.write_json("id2label.json", {str(i): name for i, name in enumerate(export.classes)})


HUGGING_FACE = ExportFormat(_write, _finish, holds_images=True)
