"""COCO instances: one annotation per segment, as RLE or as polygons.

    images/SPLIT/NAME.jpg
    annotations/instances_SPLIT.json

Categories are numbered from 1. A segment holds all pixels of its class in an image, in several
pieces where they do not touch. The polygons of a piece run along the edges of its pixels, so that
pycocotools makes the very mask of them again.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from pipeline.exports.formats import ExportFormat
from pipeline.exports.output import Export, Shard
from pipeline.exports.polygons import trace
from pipeline.exports.records import ExportImage, ExportSegment
from pipeline.resize import Size
from schemas.export_manifest import ExportCounts


def image_entry(image: ExportImage) -> dict[str, Any]:
    """Return what COCO says of an image."""
    height, width = image.size
    return {
        "id": image.number + 1,
        "file_name": image.file_name,
        "height": height,
        "width": width,
        "coco_url": image.uri,
        "image_id": image.image_id,
    }


def xywh(segment: ExportSegment) -> list[int]:
    """Return COCO's box: left, top, width, height."""
    x0, y0, x1, y1 = segment.box
    return [x0, y0, x1 - x0, y1 - y0]


def info(export: Export) -> dict[str, Any]:
    """Return COCO's head: where the labels come from."""
    return {
        "description": f"pseudo-labels of {export.dataset}",
        "version": str(export.version),
        "contributor": "segmill",
    }


def _write(shard: Shard, images: Iterable[ExportImage], *, polygons: bool) -> None:
    outline = _polygons if polygons else _runs
    for image in images:
        shard.add(f"images_{image.split}", image_entry(image))
        for segment in image.segments:
            shard.add(
                f"annotations_{image.split}",
                {
                    # A number that depends on no other shard.
                    "id": image.number * len(shard.export.classes) + segment.class_index + 1,
                    "image_id": image.number + 1,
                    "category_id": segment.class_index + 1,
                    "segmentation": outline(segment, image.size),
                    "area": segment.area,
                    "bbox": xywh(segment),
                    "iscrowd": 0,
                    "score": segment.score,
                },
            )


def _runs(segment: ExportSegment, size: Size) -> dict[str, Any]:
    return {"size": list(size), "counts": segment.counts.decode("ascii")}


def _polygons(segment: ExportSegment, size: Size) -> list[list[int]]:
    rings = trace(segment.mask(size), segment.box)
    return [ring.corners_N2.ravel().tolist() for ring in rings]


def _finish(export: Export, counts: ExportCounts) -> None:
    categories = [
        {"id": index + 1, "name": name, "supercategory": ""}
        for index, name in enumerate(export.classes)
    ]
    for split in counts.splits:
        export.write_document(
            f"annotations/instances_{split}.json",
            {"info": info(export), "licenses": [], "categories": categories},
            {
                "images": export.lines(f"images_{split}"),
                "annotations": export.lines(f"annotations_{split}"),
            },
        )


COCO_INSTANCES = ExportFormat(partial(_write, polygons=False), _finish)
COCO_POLYGONS = ExportFormat(partial(_write, polygons=True), _finish)
