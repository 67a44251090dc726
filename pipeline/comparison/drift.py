"""What a comparison of two versions adds up to: flows between labels, IoU per class, images.

Dimension key: B images of a batch.
"""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.comparison.moves import ImageError, LabelRuns, find_moves
from pipeline.storage import hide_secrets
from schemas.annotation import LABELLED
from schemas.errors import OutputError

_Segment = dict[str, Any]


@dataclass(frozen=True)
class ClassDrift:
    """One class; pixels before and after, and the IoU of the two."""

    name: str
    before: int
    after: int
    iou: float


@dataclass(frozen=True)
class Flow:
    """Pixels that went from one label to another; None is no label."""

    before: str | None
    after: str | None
    pixels: int


@dataclass(frozen=True)
class Change:
    """One image whose labels moved; `row` has its size, hash and segments before and after."""

    image_id: str
    uri: str
    moved: float  # share of its pixels
    row: dict[str, Any]


@dataclass
class Drift:
    """Adds up batches of images; memory grows with pairs of labels and with `keep`, not images."""

    keep: int  # images with the largest changes to keep with their segments
    images: int = 0
    moved_images: int = 0
    _codes: dict[str | None, int] = field(default_factory=lambda: {None: 0})
    _flows: Counter[tuple[int, int]] = field(default_factory=Counter)
    _largest: list[tuple[float, str, Change]] = field(default_factory=list)

    def add_shared(self, table: pa.Table) -> None:
        """Count rows that are the same before and after: size, status, labels and areas."""
        table = table.filter(pc.equal(table["status"], LABELLED))
        if not len(table):
            return
        self.images += len(table)
        pixels = pc.sum(
            pc.multiply(*(table[name].cast(pa.int64()) for name in ("height", "width")))
        )
        segments = table["segments"].combine_chunks().flatten()
        areas = pa.table({name: segments.field(name) for name in ("label", "area")})
        for row in areas.group_by("label").aggregate([("area", "sum")]).to_pylist():
            code = self._code(row["label"])
            self._flows[code, code] += row["area_sum"]
        self._flows[0, 0] += pixels.as_py() - (pc.sum(areas["area"]).as_py() or 0)

    def add_pairs(self, table: pa.Table) -> None:
        """Compare images: size, segments (labels and counts) before (old) and after (new).

        Raises OutputError naming an image whose segments are no label map.
        """
        sizes = [table[name].to_numpy().astype(np.int64) for name in ("height", "width")]
        pixels_B = sizes[0] * sizes[1]
        sides = [table[name].to_pylist() for name in ("old", "new")]
        self._set_aside(*sides)
        try:
            before, after = map(self._runs, sides)
            moves = find_moves(before, after, pixels_B)
        except ImageError as error:
            uri = hide_secrets(table["uri"][error.image].as_py())
            raise OutputError(f"labels of {uri}: {error}") from None
        self._flows.update(moves.flows)
        self.images += len(table)
        self.moved_images += int((moves.moved_B > 0).sum())
        share_B = moves.moved_B / pixels_B
        for index in np.argsort(-share_B, kind="stable")[: self.keep].tolist():
            self._note(table, index, float(share_B[index]))

    def _note(self, table: pa.Table, index: int, moved: float) -> None:
        if not moved:
            return
        image_id = table["image_id"][index].as_py()
        if len(self._largest) == self.keep and (moved, image_id) <= self._largest[0][:2]:
            return
        row = table.slice(index, 1).to_pylist()[0]
        heapq.heappush(self._largest, (moved, image_id, Change(image_id, row["uri"], moved, row)))
        if len(self._largest) > self.keep:
            heapq.heappop(self._largest)

    def _set_aside(self, old: list[list[_Segment]], new: list[list[_Segment]]) -> None:
        """Take out the segments that an image has in both maps: none of their pixels moved."""
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            masks = {segment["label"]: segment["counts"] for segment in before}
            same = {one["label"] for one in after if masks.get(one["label"]) == one["counts"]}
            for segment in after:
                if segment["label"] in same:
                    code = self._code(segment["label"])
                    self._flows[code, code] += segment["area"]
                    self._flows[0, 0] -= segment["area"]  # what the rest of the map has there
            old[index] = [segment for segment in before if segment["label"] not in same]
            new[index] = [segment for segment in after if segment["label"] not in same]

    def _runs(self, images: list[list[_Segment]]) -> LabelRuns:
        segments = [segment for image in images for segment in image]
        codes = [self._code(segment["label"]) for segment in segments]
        return LabelRuns(
            [segment["counts"] for segment in segments],
            np.repeat(np.arange(len(images)), [len(image) for image in images]),
            np.array(codes, dtype=np.int64),
        )

    def _code(self, name: str) -> int:
        return self._codes.setdefault(name, len(self._codes))

    @property
    def pixels(self) -> int:
        """Pixels of all images compared."""
        return sum(self._flows.values())

    @property
    def moved_pixels(self) -> int:
        """Pixels with another label than before, those that lost or gained one among them."""
        return sum(count for (old, new), count in self._flows.items() if old != new)

    def largest(self) -> list[Change]:
        """Return the images with the largest changes, the largest first."""
        return [change for _, _, change in sorted(self._largest, key=lambda kept: kept[:2])[::-1]]

    def flows(self) -> list[Flow]:
        """Return all flows between labels that differ, the largest first."""
        names = list(self._codes)
        flows = [
            Flow(names[old], names[new], count)
            for (old, new), count in self._flows.items()
            if old != new
        ]
        return sorted(flows, key=lambda flow: (-flow.pixels, flow.before or "", flow.after or ""))

    def classes(self) -> list[ClassDrift]:
        """Return every class that occurs before or after, the one that moved most first."""
        before: Counter[int] = Counter()
        after: Counter[int] = Counter()
        for (old, new), count in self._flows.items():
            before[old] += count
            after[new] += count
        drifts = []
        for name, code in self._codes.items():
            union = before[code] + after[code] - self._flows[code, code]
            if name is not None and union:
                iou = self._flows[code, code] / union
                drifts.append(ClassDrift(name, before[code], after[code], iou))
        return sorted(drifts, key=lambda drift: (drift.iou, -drift.before, drift.name))
