"""Label maps against truths: what images add up to.

Dimension key: H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.calibration import Calibration
from pipeline.evaluation.outlines import OutlineCounts, outline
from pipeline.evaluation.truth_segments import TruthFormat, read_segments
from pipeline.metrics import BoundaryCounts, Confusion
from pipeline.resize import Size
from pipeline.segments import IGNORE, decode_label_map
from pipeline.truth import read_indices
from schemas.errors import SettingsError


@dataclass(frozen=True)
class StoredLabels:
    """The labels of one image as a dataset holds them."""

    size: Size
    segments: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LabelItem:
    """One image to measure: labels of a dataset, or a PNG label map, and the file of its truth."""

    predicted: StoredLabels | Path
    truth: Path


@dataclass(frozen=True, eq=False)
class LabelTotal:
    """What images add up to; where the truth has no classes, only the outlines count."""

    images: int
    labelled: int  # pixels that carry a label
    pixels: int
    confusion: Confusion
    boundary: BoundaryCounts
    calibration: Calibration
    outlines: OutlineCounts

    @classmethod
    def zero(cls, num_classes: int) -> "LabelTotal":
        """Return the neutral element."""
        return cls(
            0, 0, 0,
            Confusion.zero(num_classes), BoundaryCounts.zero(num_classes),
            Calibration.zero(), OutlineCounts.zero(),
        )  # fmt: skip

    def __add__(self, other: "LabelTotal") -> "LabelTotal":
        return LabelTotal(
            self.images + other.images,
            self.labelled + other.labelled,
            self.pixels + other.pixels,
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.calibration + other.calibration,
            self.outlines + other.outlines,
        )


@dataclass(frozen=True)
class LabelMeasure:
    """Images -> what they add up to; a value that any process can be given."""

    num_classes: int
    truth_format: TruthFormat
    ignore: int

    def __call__(self, items: Sequence[LabelItem], /) -> LabelTotal:
        """Measure images; raises SettingsError that names the file that does not fit."""
        return sum(map(self._measure, items), start=LabelTotal.zero(self.num_classes))

    def _measure(self, item: LabelItem) -> LabelTotal:
        predicted_HW, segments = self._read_predicted(item)
        try:
            if self.truth_format == "classes":
                return self._against_classes(predicted_HW, segments, read_indices(item.truth))
            return self._against_segments(predicted_HW, item.truth)
        except ValueError as error:
            raise SettingsError(f"truth {item.truth}: {error}") from None

    def _read_predicted(
        self, item: LabelItem
    ) -> tuple[NDArray[np.int32], Sequence[Mapping[str, Any]]]:
        """Return the label map, -1 where there is none, and the segments, if they have scores."""
        if isinstance(item.predicted, StoredLabels):
            segments = item.predicted.segments
            return decode_label_map(segments, item.predicted.size), segments
        try:
            indices_HW = read_indices(item.predicted)
        except ValueError as error:
            raise SettingsError(f"prediction {error}") from None
        is_class_HW = (indices_HW >= 0) & (indices_HW < self.num_classes)
        return np.where(is_class_HW, indices_HW, IGNORE), ()

    def _against_classes(
        self,
        predicted_HW: NDArray[np.int32],
        segments: Sequence[Mapping[str, Any]],
        truth_HW: NDArray[np.int32],
    ) -> LabelTotal:
        confusion = Confusion.of(predicted_HW, truth_HW, self.num_classes, self.ignore)
        return LabelTotal(
            1,
            int((predicted_HW != IGNORE).sum()),
            predicted_HW.size,
            confusion,
            BoundaryCounts.of(predicted_HW, truth_HW, self.num_classes, self.ignore),
            Calibration.of(segments, predicted_HW, truth_HW, self.ignore),
            _outlines(predicted_HW, [truth_HW], truth_HW != self.ignore),
        )

    def _against_segments(self, predicted_HW: NDArray[np.int32], path: Path) -> LabelTotal:
        height, width = predicted_HW.shape
        truths = read_segments(path, self.truth_format, (height, width), self.ignore)
        known_HW = np.any([ids_HW > 0 for ids_HW in truths.maps], axis=0)
        none = LabelTotal.zero(self.num_classes)
        return LabelTotal(
            1,
            int((predicted_HW != IGNORE).sum()),
            predicted_HW.size,
            none.confusion,
            none.boundary,
            none.calibration,
            _outlines(predicted_HW, truths.maps, known_HW),
        )


def _outlines(
    predicted_HW: NDArray[np.int32],
    truths: Sequence[NDArray[np.int32]],
    known_HW: NDArray[np.bool_],
) -> OutlineCounts:
    predicted = outline(predicted_HW, known_HW)
    return OutlineCounts.of([predicted], [outline(ids_HW, known_HW) for ids_HW in truths])
