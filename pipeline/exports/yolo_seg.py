"""YOLO segmentation: a text file of polygons per image.

    data.yaml                names and splits
    images/SPLIT/NAME.jpg
    labels/SPLIT/NAME.txt    a line per piece of a segment: class x y x y ...

Vertices are the centres of border pixels as shares of width and height. The trainers multiply,
cut off the fraction, and fill with the outline, which gives the very pixels again. The format has
no word for ignored pixels; they are background.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import yaml

from pipeline.exports.formats import ExportFormat
from pipeline.exports.output import Export, Shard
from pipeline.exports.polygons import trace
from pipeline.exports.records import TRAIN, VAL, ExportImage
from schemas.export_manifest import ExportCounts

_LEAST_VERTICES = 3  # of what readers take for a polygon


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    for image in images:
        data = "".join(f"{line}\n" for line in _lines(image)).encode()
        shard.export.write(f"labels/{image.split}/{image.name}.txt", data)


def _lines(image: ExportImage) -> Iterator[str]:
    height, width = image.size
    for segment in image.segments:
        for ring in trace(segment.mask(image.size), segment.box):
            vertices_N2 = ring.centres_N2
            if len(vertices_N2) < _LEAST_VERTICES:
                # A pixel, or a line of them: its last vertex again.
                missing = _LEAST_VERTICES - len(vertices_N2)
                vertices_N2 = np.concatenate([vertices_N2, vertices_N2[-1:].repeat(missing, 0)])
            shares_N2 = (vertices_N2 + 0.5) / (width, height)
            yield f"{segment.class_index} " + " ".join(f"{value:.6f}" for value in shares_N2.flat)


def _finish(export: Export, counts: ExportCounts) -> None:
    # Both splits are demanded; without a `val` the trainer is given `train` twice.
    val = VAL if VAL in counts.splits else TRAIN
    # Without a `path` Ultralytics looks beside this file; "." would be where it was started.
    content = {
        "train": f"images/{TRAIN}",
        "val": f"images/{val}",
        "names": dict(enumerate(export.classes)),
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    export.write("data.yaml", text.encode())


YOLO_SEG = ExportFormat(_write, _finish)
