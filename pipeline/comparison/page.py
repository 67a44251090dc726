"""One HTML page of a comparison: its figures, and the images with the largest changes.

Dimension key: H W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

import numpy as np

from pipeline.comparison.drift import Change, Flow
from pipeline.comparison.join import Version
from pipeline.comparison.result import DiffResult
from pipeline.pages import share, shown_name, shown_uri, write_template
from pipeline.palette import class_colours, class_pattern, hexadecimal
from pipeline.photos import Photos
from pipeline.resize import Size
from pipeline.segments import IGNORE, decode_mask
from pipeline.thumbnails import LabelMap, Thumbnail, map_thumbnail, photo_thumbnail

MAX_FLOWS: Final = 40
_FLOWS_PER_CARD: Final = 5


@dataclass(frozen=True)
class Mark:
    """How a label is drawn in a legend; no colour: pixels without a label."""

    name: str
    colour: str | None
    pattern: str


@dataclass(frozen=True)
class FlowMark:
    """One flow, with the share of the pixels that it is."""

    before: Mark
    after: Mark
    pixels: int
    share: float


@dataclass(frozen=True)
class DiffCard:
    """One image of the page."""

    name: str
    uri: str
    size: Size
    moved: float
    photo: Thumbnail | None  # None: the file cannot be read any more, see note
    note: str | None
    before: Thumbnail
    after: Thumbnail
    where: Thumbnail  # the new labels of the pixels that moved
    flows: tuple[FlowMark, ...]


class _Classes:
    """Class names of both versions by number: those of the later one first, as it draws them."""

    def __init__(self, result: DiffResult, before: Version, after: Version) -> None:
        names = [*after.manifest.vocabulary.names, *before.manifest.vocabulary.names]
        names += [drift.name for drift in result.classes]
        self._indices = {name: index for index, name in enumerate(dict.fromkeys(names))}
        self.names = list(self._indices)

    def index(self, name: str) -> int:
        return self._indices[name]

    def mark(self, name: str | None) -> Mark:
        if name is None:
            return Mark("no label", None, "plain")
        index = self._indices[name]
        colour = hexadecimal(class_colours(index + 1)[index])
        return Mark(name, colour, class_pattern(index))


def write_diff_page(file: TextIO, result: DiffResult, before: Version, after: Version) -> None:
    """Write the page to `file`, image by image."""
    classes = _Classes(result, before, after)
    flows = [_flow_mark(flow, classes, result.images.pixels) for flow in result.flows[:MAX_FLOWS]]
    write_template(
        file,
        "diff.html.j2",
        "gallery.js",
        result=result,
        classes=[(classes.mark(drift.name), drift) for drift in result.classes],
        flows=flows,
        cards=_cards(result.largest, classes, Photos.of(after.manifest)),
    )


def _cards(largest: Sequence[Change], classes: _Classes, photos: Photos) -> Iterator[DiffCard]:
    for change in largest:
        row = change.row
        size = (row["height"], row["width"])
        name = shown_name(change.uri)
        before_HW, after_HW = (_label_map(row[side], classes, size) for side in ("old", "new"))
        photo = photos.read(change.uri, row["bytes_sha256"])
        flows = _flows_of(before_HW, after_HW, classes)
        where_HW = np.where(before_HW == after_HW, IGNORE, after_HW).astype(np.int32)
        words = ", ".join(f"{f.before.name} to {f.after.name} {share(f.share)}" for f in flows)
        yield DiffCard(
            name=name,
            uri=shown_uri(change.uri),
            size=size,
            moved=change.moved,
            photo=None if isinstance(photo, str) else photo_thumbnail(photo, f"Image {name}"),
            note=photo if isinstance(photo, str) else None,
            before=map_thumbnail(before_HW, f"Labels of {name} before"),
            after=map_thumbnail(after_HW, f"Labels of {name} after"),
            where=map_thumbnail(where_HW, f"What moved in {name}: {words}"),
            flows=flows,
        )


def _label_map(segments: Sequence[Mapping[str, Any]], classes: _Classes, size: Size) -> LabelMap:
    label_map_HW = np.full(size, IGNORE, dtype=np.int32)
    for segment in segments:
        label_map_HW[decode_mask(segment["counts"], size)] = classes.index(segment["label"])
    return label_map_HW


def _flows_of(before_HW: LabelMap, after_HW: LabelMap, classes: _Classes) -> tuple[FlowMark, ...]:
    """Return the largest flows of one image."""
    moved_HW = before_HW != after_HW
    pairs = np.stack([before_HW[moved_HW], after_HW[moved_HW]])
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_FLOWS_PER_CARD]

    def name(index: int) -> str | None:
        return None if index == IGNORE else classes.names[index]

    return tuple(
        _flow_mark(
            Flow(name(int(found[0, at])), name(int(found[1, at])), int(counts[at])),
            classes,
            before_HW.size,
        )
        for at in order
    )


def _flow_mark(flow: Flow, classes: _Classes, pixels: int) -> FlowMark:
    return FlowMark(
        classes.mark(flow.before), classes.mark(flow.after), flow.pixels, flow.pixels / pixels
    )
