"""Which of a dataset's segments are right, by label maps that people have drawn or checked.

Dimension key: H W pixels, N segments.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset import read_rows
from pipeline.evaluation.score_floors import Checked
from pipeline.segments import IGNORE, decode_mask
from schemas.annotation import LABELLED, MODEL
from schemas.manifest import Manifest

UNKNOWN: Final = IGNORE - 1  # what a truth holds where it says nothing

_ELEMENT: Final = "segments.list.element"


@dataclass
class CheckedSegments:
    """Adds up the checked segments of a dataset, image by image; `measure` is score or margin."""

    min_overlap: float
    measure: str = "score"
    images: int = 0
    _found: dict[int, list[tuple[int, float, bool]]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], truth_HW: NDArray[np.int32]) -> None:
        """Compare an image's segments with its truth: class indices, IGNORE (-1) where there is
        none of the classes, UNKNOWN (-2) where nothing is known.

        Segments of which no pixel is known do not count.
        """
        for segment in row["segments"]:
            truth_N = truth_HW[decode_mask(segment["counts"], (row["height"], row["width"]))]
            known_N = truth_N[truth_N != UNKNOWN]
            if len(known_N):
                share = (known_N == segment["class_index"]).mean()
                found = (self.images, segment[self.measure], bool(share >= self.min_overlap))
                self._found.setdefault(segment["class_index"], []).append(found)
        self.images += 1

    def by_class(self) -> dict[int, Checked]:
        """Return what was found of each class."""
        return {
            index: Checked(
                np.array([image for image, _, _ in found], np.int64),
                np.array([score for _, score, _ in found], np.float64),
                np.array([correct for _, _, correct in found], bool),
            )
            for index, found in self._found.items()
        }


def all_scores(dataset: str, manifest: Manifest, measure: str) -> dict[int, NDArray[np.float64]]:
    """Return the scores (or margins) of every segment that the model made, by class index."""
    columns = ("status", "annotator", f"{_ELEMENT}.class_index", f"{_ELEMENT}.{measure}")
    classes, scores = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for table in read_rows(dataset, manifest, columns, batch_rows=4096):
        segments = of_the_model(table)["segments"].combine_chunks().flatten()
        classes.append(segments.field("class_index").to_numpy())
        scores.append(segments.field(measure).to_numpy())
    classes_N, scores_N = np.concatenate(classes), np.concatenate(scores).astype(np.float64)
    order = np.argsort(classes_N, kind="stable")
    present, first = np.unique(classes_N[order], return_index=True)
    parts = np.split(scores_N[order], first[1:])
    return {int(index): part for index, part in zip(present, parts, strict=False)}


def of_the_model(table: pa.Table) -> pa.Table:
    """Return the rows that a model has labelled."""
    is_labelled = pc.equal(table["status"], LABELLED)
    return table.filter(pc.and_(is_labelled, pc.equal(table["annotator"], MODEL)))


def rows_of_the_model(
    dataset: str, manifest: Manifest, columns: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Yield some columns of every row that a model has labelled."""
    for table in read_rows(dataset, manifest, ("status", "annotator", *columns)):
        yield from of_the_model(table).to_pylist()
