"""COCO panoptic: PNG maps of segment ids as colours, and what each id is.

    images/SPLIT/NAME.jpg
    annotations/panoptic_SPLIT/NAME.png     id = R + 256 G + 256^2 B; 0 is of no segment
    annotations/panoptic_SPLIT.json

A segment's id is that of its category, from 1. All classes are "stuff" (`isthing` 0): nothing in a
dataset tells the instances of a class apart.

Dimension key: H W pixels.
"""

from collections.abc import Iterable
from io import BytesIO

import numpy as np
from PIL import Image

from pipeline.exports.coco import image_entry, info, xywh
from pipeline.exports.formats import ExportFormat
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from pipeline.palette import class_colours
from schemas.export_manifest import ExportCounts


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    for image in images:
        ids_HW = image.label_map(ignore=-1) + 1
        channels = [(ids_HW >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
        file = BytesIO()
        Image.fromarray(np.stack(channels, axis=-1)).save(file, "PNG", compress_level=4)
        shard.export.write(f"annotations/panoptic_{image.split}/{image.name}.png", file.getvalue())
        shard.add(f"images_{image.split}", image_entry(image))
        segments = [
            {
                "id": segment.class_index + 1,
                "category_id": segment.class_index + 1,
                "area": segment.area,
                "bbox": xywh(segment),
                "iscrowd": 0,
                "score": segment.score,
            }
            for segment in image.segments
        ]
        shard.add(
            f"annotations_{image.split}",
            {
                "image_id": image.number + 1,
                "file_name": f"{image.name}.png",
                "segments_info": segments,
            },
        )


def _finish(export: Export, counts: ExportCounts) -> None:
    colours = class_colours(len(export.classes))
    categories = [
        {"id": index + 1, "name": name, "supercategory": "", "isthing": 0, "color": list(colour)}
        for index, (name, colour) in enumerate(zip(export.classes, colours, strict=True))
    ]
    for split in counts.splits:
        export.write_document(
            f"annotations/panoptic_{split}.json",
            {"info": info(export), "licenses": [], "categories": categories},
            {
                "images": export.lines(f"images_{split}"),
                "annotations": export.lines(f"annotations_{split}"),
            },
        )


COCO_PANOPTIC = ExportFormat(_write, _finish)
