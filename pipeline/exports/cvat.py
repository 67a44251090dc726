"""CVAT for images 1.1: masks as runs within their boxes.

    SPLIT.xml
    images/SPLIT/NAME.jpg    in the file it is SPLIT/NAME.jpg: a task is made of the folder images

Dimension key: H W pixels of a box.
"""

from collections.abc import Iterable, Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline.exports.formats import ExportFormat
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage, ExportSegment
from pipeline.exports.xml import xml_text
from pipeline.palette import class_colours, hexadecimal
from pipeline.resize import Size
from schemas.export_manifest import ExportCounts


def row_runs(mask_HW: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of runs along the rows; the first is of pixels outside."""
    flat = mask_HW.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1]))
    lengths: list[int] = np.diff(starts, prepend=0, append=flat.size).tolist()
    return [0, *lengths] if flat[0] else lengths


def mask_of_runs(lengths: Sequence[int], size: Size) -> NDArray[np.bool_]:
    """Return the mask (H, W) of what `row_runs` returned; raises ValueError for another size."""
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"its runs do not cover {size[0]} x {size[1]} pixels (height x width)")
    inside = np.arange(len(lengths)) % 2 == 1
    mask_HW: NDArray[np.bool_] = np.repeat(inside, lengths).reshape(size)
    return mask_HW


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    for image in images:
        # Without pictures of its own it is a name below the source, which stands as it is.
        name = image.file_name if image.picture is None else image.file_name.removeprefix("images/")
        element = image_element(
            image.number, name, image.size, image.segments, shard.export.classes
        )
        shard.add_line(f"images_{image.split}", element)


def image_element(
    number: int, name: str, size: Size, segments: Sequence[ExportSegment], names: Sequence[str]
) -> str:
    """Return the line of one image."""
    height, width = size
    return (
        f'  <image id="{number}" name={quoteattr(xml_text(name))} width="{width}" '
        f'height="{height}">{"".join(_masks(size, segments, names))}</image>'
    )


def _masks(size: Size, segments: Sequence[ExportSegment], names: Sequence[str]) -> Iterator[str]:
    for segment in segments:
        x0, y0, x1, y1 = segment.box
        runs = row_runs(segment.mask(size)[y0:y1, x0:x1])
        label = quoteattr(xml_text(names[segment.class_index]))
        yield (
            f'<mask label={label} source="auto" occluded="0" rle="{", ".join(map(str, runs))}" '
            f'left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}" z_order="0"></mask>'
        )


def document_head(name: str, images: int, names: Sequence[str]) -> str:
    """Return all of a document that comes before its images."""
    labels = "".join(
        f"        <label><name>{escape(xml_text(name))}</name><color>{hexadecimal(colour)}</color>"
        "<type>mask</type><attributes></attributes></label>\n"
        for name, colour in zip(names, class_colours(len(names)), strict=True)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta>\n    <task>\n      <name>{escape(name)}</name>\n      <size>{images}</size>\n"
        f"      <mode>annotation</mode>\n      <labels>\n{labels}      </labels>\n    </task>\n"
        "  </meta>\n"
    )


def _finish(export: Export, counts: ExportCounts) -> None:
    for split, found in counts.splits.items():
        with export.open(f"{split}.xml") as file:
            file.write(document_head(split, found.images, export.classes).encode())
            for line in export.lines(f"images_{split}"):
                file.write(line + b"\n")
            file.write(b"</annotations>\n")


CVAT = ExportFormat(_write, _finish)
