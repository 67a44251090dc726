"""What a whole version adds up to: areas and scores by class, and which images to look at first.

One pass over small columns; no label map is decoded. Dimension key: B images of a batch, N their
segments, K class names, S steps of score.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COLUMNS: Final = (
    "height", "width", "status", "coverage", "mean_score", "segments.list.element.class_index",
    "segments.list.element.score", "segments.list.element.margin", "segments.list.element.area",
)  # fmt: skip
STEPS: Final = 20  # of the histograms of scores
_STEPS_OF_CLASS: Final = 10

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def mean_margins(segments_B: pa.ListArray) -> Floats:
    """Return the mean margin (B,) of each image's labelled pixels; NaN: none, or a person's."""
    lengths_B = pc.list_value_length(segments_B).to_numpy(zero_copy_only=False)
    images_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
    segments = segments_B.flatten()
    areas_N = segments.field("area").to_numpy().astype(np.float64)
    margins_N = segments.field("margin").to_numpy(zero_copy_only=False).astype(np.float64)
    weighted_B = np.bincount(images_N, margins_N * areas_N, len(lengths_B))
    areas_B = np.bincount(images_N, areas_N, len(lengths_B))
    means_B = np.full(len(areas_B), np.nan)
    np.divide(weighted_B, areas_B, out=means_B, where=areas_B > 0)
    return means_B


@dataclass
class Least:
    """The ranks of the `keep` least values seen."""

    keep: int
    _values: Floats = field(default_factory=lambda: np.empty(0))
    _ranks: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def add(self, values: Floats, ranks: Ints) -> None:
        """Take more values; of equal ones the first seen stay."""
        all_values = np.concatenate([self._values, values])
        all_ranks = np.concatenate([self._ranks, ranks])
        order = np.argsort(all_values, kind="stable")[: self.keep]
        self._values, self._ranks = all_values[order], all_ranks[order]

    def ranks(self) -> list[int]:
        """Return the ranks, that of the least value first."""
        return [int(rank) for rank in self._ranks]


class Overview:
    """Adds up the rows of a version; ranks number its labelled rows in order."""

    def __init__(self, num_classes: int, keep: int) -> None:
        self.labelled = 0
        self.pixels = 0
        self._images_K = np.zeros(num_classes, dtype=np.int64)
        self._areas_K = np.zeros(num_classes, dtype=np.int64)
        self._weighted_K = np.zeros(num_classes)
        self._scores_KS = np.zeros((num_classes, _STEPS_OF_CLASS), dtype=np.int64)
        self._segments_S = np.zeros(STEPS, dtype=np.int64)
        self._image_scores_S = np.zeros(STEPS, dtype=np.int64)
        self._coverage_S = np.zeros(STEPS, dtype=np.int64)
        self.worst = Least(keep)
        self.uncertain = Least(keep)

    @classmethod
    def of(cls, tables: Iterable[pa.Table], num_classes: int, keep: int) -> "Overview":
        """Add up tables of COLUMNS; `keep` images are remembered as worst and least certain."""
        overview = cls(num_classes, keep)
        for table in tables:
            overview.add(table)
        return overview

    def add(self, table: pa.Table) -> None:
        """Take some labelled rows."""
        if not len(table):
            return
        sizes = [table[name].to_numpy().astype(np.int64) for name in ("height", "width")]
        coverage_B, score_B = (
            pc.fill_null(table[name], 0.0).to_numpy().astype(np.float64)
            for name in ("coverage", "mean_score")
        )
        ranks_B = np.arange(self.labelled, self.labelled + len(table))
        self.labelled += len(table)
        self.pixels += int((sizes[0] * sizes[1]).sum())
        self.worst.add(coverage_B * score_B, ranks_B)
        has_labels_B = coverage_B > 0
        margins_B = mean_margins(table["segments"].combine_chunks())
        has_margin_B = ~np.isnan(margins_B)
        self.uncertain.add(margins_B[has_margin_B], ranks_B[has_margin_B])
        self._image_scores_S += _histogram(score_B[has_labels_B], STEPS)
        self._coverage_S += _histogram(coverage_B, STEPS)
        self._add_segments(table["segments"].combine_chunks().flatten())

    def _add_segments(self, segments: pa.StructArray) -> None:
        classes_N, scores_N, areas_N = (
            segments.field(name).to_numpy() for name in ("class_index", "score", "area")
        )
        num_classes = len(self._areas_K)
        scores_N = scores_N.astype(np.float64)
        # A class has one segment of an image, so that segments count images.
        self._images_K += np.bincount(classes_N, minlength=num_classes)
        np.add.at(self._areas_K, classes_N, areas_N)
        np.add.at(self._weighted_K, classes_N, scores_N * areas_N)
        self._segments_S += _histogram(scores_N, STEPS)
        np.add.at(self._scores_KS, (classes_N, _steps(scores_N, _STEPS_OF_CLASS)), 1)

    @property
    def images(self) -> list[int]:
        """In how many images each class occurs."""
        return [int(count) for count in self._images_K]

    @property
    def areas(self) -> list[int]:
        """Pixels of each class."""
        return [int(area) for area in self._areas_K]

    @property
    def weighted_scores(self) -> list[float]:
        """Sum of the scores of each class's pixels."""
        return [float(total) for total in self._weighted_K]

    @property
    def labelled_pixels(self) -> int:
        """Pixels that carry a label."""
        return int(self._areas_K.sum())

    @property
    def mean_score(self) -> float | None:
        """The mean score of the pixels that carry a label."""
        pixels = self.labelled_pixels
        return float(self._weighted_K.sum()) / pixels if pixels else None

    def scores_of_class(self, index: int) -> list[int]:
        """Return how many segments of a class have a score of each tenth."""
        return [int(count) for count in self._scores_KS[index]]

    def histograms(self) -> dict[str, list[int]]:
        """Return counts by twentieths of 0 to 1, with the words for what is counted."""
        return {
            "Segments by score": [int(count) for count in self._segments_S],
            "Images by mean score": [int(count) for count in self._image_scores_S],
            "Images by share of labelled pixels": [int(count) for count in self._coverage_S],
        }


def _steps(values: Floats, steps: int) -> Ints:
    """Return the step of each value of 0 to 1; 1 itself is in the last one."""
    return (values * steps).astype(np.int64).clip(0, steps - 1)


def _histogram(values: Floats, steps: int) -> Ints:
    return np.bincount(_steps(values, steps), minlength=steps)
