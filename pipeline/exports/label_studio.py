"""Label Studio: tasks with predictions as brush strokes, and the labelling interface for them.

    label_config.xml                  to paste under Settings, Labeling Interface
    tasks/00000-of-00012.json         to import; a task per image
    images/SPLIT/NAME.jpg             served as local files: set
                                      LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT to this directory

Brush masks are runs of bytes of RGBA pixels in the bit stream of `rle-pack`.

Dimension key: H W pixels, R runs.
"""

import json
from collections.abc import Iterable, Sequence
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
from pipeline.resize import Size
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


def brush_mask(rle: Sequence[int], size: Size) -> NDArray[np.bool_]:
    """Return the mask (H, W) of Label Studio's brush RLE; pixels drawn to more than half are in it.

    Values may stand one by one as well as in runs: its own encoder mixes both. Raises ValueError
    for bytes that are no mask of this size.
    """
    bits = "".join(f"{byte:08b}" for byte in bytes(rle))
    place = 0

    def take(width: int) -> int:
        nonlocal place
        place += width
        if place > len(bits):
            raise ValueError("the brush RLE ends too early")
        return int(bits[place - width : place], 2)

    total, value_bits = take(32), take(5) + 1
    run_bits = [take(4) + 1 for _ in range(4)]
    if total != size[0] * size[1] * _CHANNELS or value_bits != 8:
        raise ValueError(f"the brush RLE has {total} values of {value_bits} bits")
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        is_run = take(1)
        stop = done + 1 + take(run_bits[take(2)])
        if stop > total:
            raise ValueError("the brush RLE has too many values")
        if is_run:
            values[done:stop] = take(value_bits)
        else:
            values[done:stop] = [take(value_bits) for _ in range(stop - done)]
        done = stop
    alpha_HW: NDArray[np.bool_] = values.reshape(*size, _CHANNELS)[..., -1] > 127
    return alpha_HW


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    with shard.export.open(f"tasks/{shard.label}.json") as file:
        tasks = (json.dumps(_task(image, shard.export)).encode() for image in images)
        write_array(file, tasks)


def _task(image: ExportImage, export: Export) -> dict[str, Any]:
    place = local_file(image.file_name) if export.has_images else image.uri
    return {
        "data": {"image": place, "image_id": image.image_id, "split": image.split},
        "predictions": [
            prediction(image.image_id, image.size, image.segments, export.classes, export.version)
        ],
    }


def local_file(name: str) -> str:
    """Return where Label Studio finds a file below its document root."""
    return f"{_LOCAL_FILES}{quote(name)}"


def prediction(
    image_id: str,
    size: Size,
    segments: Sequence[ExportSegment],
    names: Sequence[str],
    version: int,
) -> dict[str, Any]:
    """Return what a version of a dataset says of an image, as a task's prediction."""
    area = sum(segment.area for segment in segments)
    score = sum(segment.score * segment.area for segment in segments)
    return {
        "model_version": f"segmill {version}",
        "score": score / area if area else 0.0,
        "result": [_result(segment, image_id, size, names) for segment in segments],
    }


def _result(
    segment: ExportSegment, image_id: str, size: Size, names: Sequence[str]
) -> dict[str, Any]:
    height, width = size
    return {
        "id": f"{image_id[:12]}-{segment.class_index}",
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": segment.score,
        "value": {
            "format": "rle",
            "rle": brush_rle(segment.mask(size)),
            "brushlabels": [names[segment.class_index]],
        },
    }


def label_config(names: Sequence[str]) -> bytes:
    """Return the labelling interface for these classes."""
    labels = "".join(
        f"    <Label value={quoteattr(xml_text(name))} background={quoteattr(hexadecimal(rgb))}/>\n"
        for name, rgb in zip(names, class_colours(len(names)), strict=True)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    ).encode()


def _finish(export: Export, counts: ExportCounts) -> None:
    export.write("label_config.xml", label_config(export.classes))


LABEL_STUDIO = ExportFormat(_write, _finish)
