"""WebDataset: tar files in which the files of one image share their name.

    SPLIT-00000-of-00012.tar    NAME.jpg  NAME.seg.png  NAME.json
    classes.json                class names in order

The map is a grey PNG of class indices; 255 is ignored (16 bits from 256 classes). Read it as it is,
`decode("pil")` would make RGB of it: `decode(handle_extension("seg.png", read_map), "pil")`.
"""

import json
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from io import BytesIO
from pathlib import PurePosixPath

from pipeline.exports.formats import ExportFormat
from pipeline.exports.masks import encode_labels
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from schemas.export_manifest import ExportCounts


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    with ExitStack() as files:
        tars: dict[str, tarfile.TarFile] = {}
        for image in images:
            if image.split not in tars:
                file = files.enter_context(shard.export.open(f"{image.split}-{shard.label}.tar"))
                # "w|" never looks back, and so never asks more of the file than to write.
                tars[image.split] = files.enter_context(tarfile.open(fileobj=file, mode="w|"))
            for suffix, data in _members(image, shard.export):
                entry = tarfile.TarInfo(f"{image.name}{suffix}")
                entry.size = len(data)
                tars[image.split].addfile(entry, BytesIO(data))


def _members(image: ExportImage, export: Export) -> Iterable[tuple[str, bytes]]:
    if image.picture is not None:
        yield PurePosixPath(image.file_name).suffix, image.picture.data
    yield ".seg.png", encode_labels(image.label_map(export.ignore), export.ignore)
    facts = {
        "image_id": image.image_id,
        "uri": image.uri,
        "height": image.size[0],
        "width": image.size[1],
        "segments": [
            {
                "label": export.classes[segment.class_index],
                "class_index": segment.class_index,
                "score": segment.score,
                "area": segment.area,
            }
            for segment in image.segments
        ],
    }
    yield ".json", json.dumps(facts, ensure_ascii=False).encode()


def _finish(export: Export, counts: ExportCounts) -> None:
    export.write_json("classes.json", {"classes": list(export.classes), "ignore": export.ignore})


WEBDATASET = ExportFormat(_write, _finish, holds_images=True)
