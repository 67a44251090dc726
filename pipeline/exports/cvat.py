"""CVAT for images 1.1: masks as runs within their boxes.

    SPLIT.xml
    images/SPLIT/NAME.jpg    in the file it is SPLIT/NAME.jpg: a task is made of the folder images

Dimension key: H W pixels of a box.
"""

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline.exports.formats import ExportFormat
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from pipeline.exports.xml import xml_text
from pipeline.palette import class_colours, hexadecimal
from schemas.export_manifest import ExportCounts


def row_runs(mask_HW: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of runs along the rows; the first is of pixels outside."""
    flat = mask_HW.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1]))
    lengths: list[int] = np.diff(starts, prepend=0, append=flat.size).tolist()
    return [0, *lengths] if flat[0] else lengths


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    for image in images:
        height, width = image.size
        name = quoteattr(xml_text(image.file_name.removeprefix("images/")))
        shard.add_line(
            f"images_{image.split}",
            f'  <image id="{image.number}" name={name} width="{width}" height="{height}">'
            f"{''.join(_masks(image, shard.export))}</image>",
        )


def _masks(image: ExportImage, export: Export) -> Iterator[str]:
    for segment in image.segments:
        x0, y0, x1, y1 = segment.box
        runs = row_runs(segment.mask(image.size)[y0:y1, x0:x1])
        label = quoteattr(xml_text(export.classes[segment.class_index]))
        yield (
            f'<mask label={label} source="auto" occluded="0" rle="{", ".join(map(str, runs))}" '
            f'left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}" z_order="0"></mask>'
        )


def _finish(export: Export, counts: ExportCounts) -> None:
    labels = "".join(
        f"        <label><name>{escape(xml_text(name))}</name><color>{hexadecimal(colour)}</color>"
        "<type>mask</type><attributes></attributes></label>\n"
        for name, colour in zip(export.classes, class_colours(len(export.classes)), strict=True)
    )
    for split, found in counts.splits.items():
        with export.open(f"{split}.xml") as file:
            file.write(
                '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
                f"  <meta>\n    <task>\n      <name>{split}</name>\n      <size>{found.images}"
                f"</size>\n      <mode>annotation</mode>\n      <labels>\n{labels}"
                "      </labels>\n    </task>\n  </meta>\n".encode()
            )
            for line in export.lines(f"images_{split}"):
                file.write(line + b"\n")
            file.write(b"</annotations>\n")


CVAT = ExportFormat(_write, _finish)
