"""detectron2's semantic segmentation: what its `load_sem_seg` and `MetadataCatalog` take.

images/SPLIT/NAME.jpg
annotations/SPLIT/NAME.png   grey class indices; 255 is ignored (16 bits from 256 classes)
metadata.json                `stuff_classes`, `stuff_colors`, contiguous ids, `ignore_label`

DatasetCatalog.register(name, lambda: load_sem_seg("annotations/train", "images/train"))
MetadataCatalog.get(name).set(**metadata)
"""

from collections.abc import Iterable

from pipeline.exports.formats import ExportFormat
from pipeline.exports.masks import encode_labels
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from pipeline.palette import class_colours
from schemas.export_manifest import ExportCounts


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    ignore = shard.export.ignore
    for image in images:
        data = encode_labels(image.label_map(ignore), ignore)
        shard.export.write(f"annotations/{image.split}/{image.name}.png", data)


def _finish(export: Export, counts: ExportCounts) -> None:
    numbers = range(len(export.classes))
    export.write_json(
        "metadata.json",
        {
            "evaluator_type": "sem_seg",
            "stuff_classes": list(export.classes),
            "stuff_colors": [list(colour) for colour in class_colours(len(export.classes))],
            # JSON has no numbers for keys; the maps count as the classes do.
            "stuff_dataset_id_to_contiguous_id": {str(index): index for index in numbers},
            "ignore_label": export.ignore,
        },
    )


DETECTRON2_SEM_SEG = ExportFormat(_write, _finish)
