"""Label Studio: tasks with predictions as brush strokes, and the labelling interface for them.

    label_config.xml                  to paste under Settings, Labeling Interface
    tasks/00000-of-00012.json         to import; a task per image
    images/SPLIT/NAME.jpg             served as local files: set
                                      LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT to this directory

Brush masks are runs of bytes of RGBA pixels in the bit stream of `rle-pack`.

Dimension key: H W pixels, R runs.
"""

import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline.exports.formats import ExportFormat
from pipeline.exports.output import Export, Shard, write_array
from pipeline.exports.records import ExportImage, ExportSegment
from pipeline.exports.xml import xml_text
from pipeline.palette import class_colours, hexadecimal
from schemas.export_manifest import ExportCounts

_LOCAL_FILES: Final = "/data/local-files/?d="
_CHANNELS: Final = 4
_RUN_BITS: Final = (3, 7, 11, 16)  # lengths of runs are written in one of these
_LONGEST_RUN: Final = 2**16


def brush_rle(mask_HW: NDArray[np.bool_]) -> list[int]:
    """Return a mask as the bytes of Label Studio's brush RLE.

    The stream: number of values (32 bits), bits of a value less 1 (5), the four sizes of a length
    less 1 (4 each); then runs: 1, which size (2), length less 1, value (8).
    """
    flat = mask_HW.ravel()
    starts_R = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths_R = np.diff(starts_R, append=flat.size) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}{7:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    for value, length in zip(flat[starts_R].tolist(), lengths_R.tolist(), strict=True):
        colour = "1" * 8 if value else "0" * 8
        for done in range(0, length, _LONGEST_RUN):
            most = min(length - done, _LONGEST_RUN) - 1
            which = next(i for i, size in enumerate(_RUN_BITS) if most < 2**size)
            bits.append(f"1{which:02b}{most:0{_RUN_BITS[which]}b}{colour}")
    text = "".join(bits)
    stream = np.frombuffer(text.encode(), np.uint8) - ord("0")
    packed: list[int] = np.packbits(stream).tolist()
    return packed


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    with shard.export.open(f"tasks/{shard.label}.json") as file:
        tasks = (json.dumps(_task(image, shard.export)).encode() for image in images)
        write_array(file, tasks)


def _task(image: ExportImage, export: Export) -> dict[str, Any]:
    place = f"{_LOCAL_FILES}{quote(image.file_name)}" if export.has_images else image.uri
    area = sum(segment.area for segment in image.segments)
    score = sum(segment.score * segment.area for segment in image.segments)
    return {
        "data": {"image": place, "image_id": image.image_id, "split": image.split},
        "predictions": [
            {
                "model_version": f"segmill {export.version}",
                "score": score / area if area else 0.0,
                "result": [_result(segment, image, export) for segment in image.segments],
            }
        ],
    }


def _result(segment: ExportSegment, image: ExportImage, export: Export) -> dict[str, Any]:
    height, width = image.size
    return {
        "id": f"{image.image_id[:12]}-{segment.class_index}",
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": segment.score,
        "value": {
            "format": "rle",
            "rle": brush_rle(segment.mask(image.size)),
            "brushlabels": [export.classes[segment.class_index]],
        },
    }


def _finish(export: Export, counts: ExportCounts) -> None:
    labels = "".join(
        f"    <Label value={quoteattr(xml_text(name))} background={quoteattr(hexadecimal(rgb))}/>\n"
        for name, rgb in zip(export.classes, class_colours(len(export.classes)), strict=True)
    )
    export.write(
        "label_config.xml",
        (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
        ).encode(),
    )


LABEL_STUDIO = ExportFormat(_write, _finish)
