"""FiftyOne: a `FiftyOneDataset` directory whose samples carry a `Segmentation`.

metadata.json, samples.json
images/SPLIT/NAME.jpg
fields/pseudo_labels/SPLIT/NAME.png    class index + 1; 0 is of no class

fiftyone.Dataset.from_dir(DIRECTORY, fiftyone.types.FiftyOneDataset)
"""

from collections.abc import Iterable
from typing import Final

from pipeline.exports.formats import ExportFormat
from pipeline.exports.masks import encode_labels
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from pipeline.metrics import truth_ignore
from schemas.export_manifest import ExportCounts

FIELD: Final = "pseudo_labels"


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    deepest = truth_ignore(len(shard.export.classes) + 1)  # 0 is one value more
    for image in images:
        path = f"fields/{FIELD}/{image.split}/{image.name}.png"
        shard.export.write(path, encode_labels(image.label_map(ignore=-1) + 1, deepest))
        height, width = image.size
        shard.add(
            "samples",
            {
                "filepath": image.file_name.removeprefix("file://"),
                "tags": [image.split],
                "metadata": {"_cls": "ImageMetadata", "width": width, "height": height},
                "image_id": image.image_id,
                "uri": image.uri,
                FIELD: {"_cls": "Segmentation", "mask_path": path},
            },
        )


def _finish(export: Export, counts: ExportCounts) -> None:
    targets = {str(index + 1): name for index, name in enumerate(export.classes)}
    export.write_document("samples.json", {}, {"samples": export.lines("samples")})
    # Without "version", as the layout is written that is no dump of a database.
    export.write_json(
        "metadata.json",
        {
            "name": export.dataset,
            "media_type": "image",
            "info": {
                "description": f"pseudo-labels of {export.dataset}, version {export.version}",
                "classes": {FIELD: list(export.classes)},
                "mask_targets": {FIELD: targets},
            },
        },
    )


FIFTYONE = ExportFormat(_write, _finish)
