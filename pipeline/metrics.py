"""Semantic segmentation metrics as values that add: parts merged equal the whole (spec 5.2).

Every mean is over the classes that a protocol lets in, and nan when there are none.
Dimension key: K class names, H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

IGNORE_TRUTH: Final = 255
_IGNORE_TRUTH_16: Final = 65535
BOUNDARY_SHARE_OF_DIAGONAL: Final = 0.02

# Which classes enter a mean IoU. "reference" (the paper's code): those that occur in the truth or
# in a prediction; one that is predicted but absent from the truth counts as 0. "detectron2": those
# that occur in the truth.
Protocol = Literal["reference", "detectron2"]

_NOWHERE: Final = -1  # in a label map: of no class


def truth_ignore(num_classes: int) -> int:
    """Return what truths hold where they count nowhere: 255, or 65535 where 255 is a class."""
    return IGNORE_TRUTH if num_classes <= IGNORE_TRUTH else _IGNORE_TRUTH_16


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixel counts (K + 1, K): rows predicted (the last: no label), columns truth."""

    counts: NDArray[np.int64]

    @classmethod
    def zero(cls, num_classes: int) -> "Confusion":
        """Return the neutral element."""
        return cls(np.zeros((num_classes + 1, num_classes), dtype=np.int64))

    @classmethod
    def of(
        cls,
        predicted_HW: NDArray[np.integer[Any]],
        truth_HW: NDArray[np.integer[Any]],
        num_classes: int,
        ignore: int | None = None,
    ) -> "Confusion":
        """Count one image; a predicted index outside 0..K-1 means the pixel has no label.

        Raises ValueError when sizes differ or the truth holds an index that is neither a class nor
        `ignore` (if absent that of `truth_ignore`).
        """
        counted = _counted(predicted_HW, truth_HW, num_classes, ignore)
        truth = truth_HW[counted].astype(np.int64)
        predicted = predicted_HW[counted].astype(np.int64)
        predicted[(predicted < 0) | (predicted >= num_classes)] = num_classes
        cells = np.bincount(
            predicted * num_classes + truth, minlength=(num_classes + 1) * num_classes
        )
        return cls(cells.reshape(num_classes + 1, num_classes))

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(self.counts + other.counts)

    @property
    def hits(self) -> NDArray[np.int64]:
        """Pixels (K,) that carry their true label."""
        return np.diagonal(self.counts)

    @property
    def truth(self) -> NDArray[np.int64]:
        """Pixels (K,) of each class in the truth."""
        return np.asarray(self.counts.sum(axis=0))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Pixels (K,) of each class in the predictions, those of ignored truth left out."""
        return np.asarray(self.counts[:-1].sum(axis=1))

    def iou(self) -> NDArray[np.float64]:
        """Return the IoU (K,) of every class, nan for classes absent from the truth."""
        return _divide(self.hits, self.truth + self.predicted - self.hits, where=self.truth > 0)

    def accuracy(self) -> NDArray[np.float64]:
        """Return the share (K,) of each class's true pixels that were found, nan without any."""
        return _divide(self.hits, self.truth, where=self.truth > 0)

    def miou(
        self, members: Sequence[bool] | None = None, protocol: Protocol = "reference"
    ) -> float:
        """Return the mean IoU over `members` (all classes if absent); see `Protocol`."""
        return _mean_iou(self.iou(), self.predicted > 0, members, protocol)

    def pixel_accuracy(self, members: Sequence[bool] | None = None) -> float:
        """Return pAcc, the share of the members' true pixels that carry their label."""
        chosen = _chosen(members, len(self.truth))
        total = int(self.truth[chosen].sum())
        return int(self.hits[chosen].sum()) / total if total else math.nan

    def mean_accuracy(self, members: Sequence[bool] | None = None) -> float:
        """Return mAcc, the mean accuracy of the members that occur in the truth."""
        accuracy = self.accuracy()[_chosen(members, len(self.truth)) & (self.truth > 0)]
        return float(accuracy.mean()) if accuracy.size else math.nan

    def frequency_weighted_iou(self) -> float:
        """Return fwIoU, the mean IoU weighted by the classes' shares of the true pixels."""
        total = int(self.truth.sum())
        return float(np.nansum(self.iou() * self.truth)) / total if total else math.nan


@dataclass(frozen=True, eq=False)
class BoundaryCounts:
    """Pixel counts (K,) for boundary IoU (Cheng et al., CVPR 2021).

    The boundary of a mask are its pixels within a distance (chessboard) of its contour, 2 % of the
    image's diagonal, as in the authors' code; the image's edge cuts masks and is a contour too.
    """

    hits: NDArray[np.int64]  # in the boundary of the class in both
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]

    @classmethod
    def zero(cls, num_classes: int) -> "BoundaryCounts":
        """Return the neutral element."""
        none = np.zeros(num_classes, dtype=np.int64)
        return cls(none, none, none)

    @classmethod
    def of(
        cls,
        predicted_HW: NDArray[np.integer[Any]],
        truth_HW: NDArray[np.integer[Any]],
        num_classes: int,
        ignore: int | None = None,
        share_of_diagonal: float = BOUNDARY_SHARE_OF_DIAGONAL,
    ) -> "BoundaryCounts":
        """Count one image; arguments and errors as for `Confusion.of`.

        Ignored pixels are outside of every mask, of the predicted ones too.
        """
        counted = _counted(predicted_HW, truth_HW, num_classes, ignore)
        is_class = counted & (predicted_HW >= 0) & (predicted_HW < num_classes)
        distance = max(1, round(share_of_diagonal * math.hypot(*truth_HW.shape)))
        truth = _boundary(np.where(counted, truth_HW, _NOWHERE).astype(np.int64), distance)
        predicted = _boundary(np.where(is_class, predicted_HW, _NOWHERE).astype(np.int64), distance)
        hits = np.where(truth == predicted, truth, _NOWHERE)
        return cls(*(_per_class(labels, num_classes) for labels in (hits, truth, predicted)))

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        return BoundaryCounts(
            self.hits + other.hits, self.truth + other.truth, self.predicted + other.predicted
        )

    def iou(self) -> NDArray[np.float64]:
        """Return the boundary IoU (K,), nan for classes absent from the truth."""
        return _divide(self.hits, self.truth + self.predicted - self.hits, where=self.truth > 0)

    def miou(
        self, members: Sequence[bool] | None = None, protocol: Protocol = "reference"
    ) -> float:
        """Return the mean boundary IoU over `members` (all classes if absent)."""
        return _mean_iou(self.iou(), self.predicted > 0, members, protocol)


def harmonic_iou(seen_miou: float, unseen_miou: float) -> float:
    """Return hIoU, the harmonic mean of seen and unseen mIoU: nan when either is, 0 at a 0."""
    if math.isnan(seen_miou) or math.isnan(unseen_miou):
        return math.nan
    if seen_miou == 0 or unseen_miou == 0:
        return 0.0
    return 2.0 / (1.0 / seen_miou + 1.0 / unseen_miou)


def summarise(
    confusion: Confusion,
    names: Sequence[str],
    sets: Mapping[str, Sequence[int]] | None = None,
    protocol: Protocol = "reference",
) -> dict[str, float]:
    """Return every metric as a fraction, under the names that the reference gives them.

    For a set of class indices "base" these are mIoU-base and pAcc-base, the same of all other
    classes as mIoU-unbase and pAcc-unbase, and hIoU-base of the two.
    """
    metrics = {"mIoU": confusion.miou(protocol=protocol)}
    metrics["fwIoU"] = confusion.frequency_weighted_iou()
    metrics |= zip((f"IoU-{name}" for name in names), confusion.iou().tolist(), strict=True)
    metrics["mACC"] = confusion.mean_accuracy()
    metrics["pACC"] = confusion.pixel_accuracy()
    metrics |= zip((f"ACC-{name}" for name in names), confusion.accuracy().tolist(), strict=True)
    for name, members in (sets or {}).items():
        inside = [index in members for index in range(len(names))]
        for label, chosen in ((name, inside), (f"un{name}", [not flag for flag in inside])):
            metrics[f"mIoU-{label}"] = confusion.miou(chosen, protocol)
            metrics[f"pAcc-{label}"] = confusion.pixel_accuracy(chosen)
        metrics[f"hIoU-{name}"] = harmonic_iou(metrics[f"mIoU-{name}"], metrics[f"mIoU-un{name}"])
    return metrics


def _counted(
    predicted_HW: NDArray[np.integer[Any]],
    truth_HW: NDArray[np.integer[Any]],
    num_classes: int,
    ignore: int | None,
) -> NDArray[np.bool_]:
    """Return where the truth is a class; raises ValueError for maps that do not fit."""
    if predicted_HW.shape != truth_HW.shape:
        raise ValueError(f"prediction is {predicted_HW.shape}, truth is {truth_HW.shape}")
    return known_pixels(truth_HW, num_classes, ignore)


def known_pixels(
    truth_HW: NDArray[np.integer[Any]], num_classes: int, ignore: int | None = None
) -> NDArray[np.bool_]:
    """Return where (H, W) a truth is a class.

    Raises ValueError when it holds an index that is neither a class nor `ignore` (if absent that of
    `truth_ignore`).
    """
    ignore = truth_ignore(num_classes) if ignore is None else ignore
    counted: NDArray[np.bool_] = truth_HW != ignore
    truth = truth_HW[counted]
    if truth.size and not 0 <= int(truth.min()) <= int(truth.max()) < num_classes:
        found = sorted({int(truth.min()), int(truth.max())})
        raise ValueError(f"truth holds indices up to {found}, there are {num_classes} classes")
    return counted


def _boundary(labels_HW: NDArray[np.int64], distance: int) -> NDArray[np.int64]:
    """Return the labels within `distance` of another label or of the image's edge, else nowhere."""
    side = 2 * distance + 1
    outside = _NOWHERE - 1  # below every label: the edge of the image is a contour
    lowest = minimum_filter(labels_HW, side, mode="constant", cval=outside)
    highest = maximum_filter(labels_HW, side, mode="constant", cval=outside)
    is_boundary = (lowest != labels_HW) | (highest != labels_HW)
    return np.where(is_boundary, labels_HW, _NOWHERE)


def _per_class(labels_HW: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    return np.bincount(labels_HW[labels_HW >= 0], minlength=num_classes)


def _chosen(members: Sequence[bool] | None, num_classes: int) -> NDArray[np.bool_]:
    return np.ones(num_classes, dtype=bool) if members is None else np.asarray(members, dtype=bool)


def _mean_iou(
    iou: NDArray[np.float64],
    is_predicted: NDArray[np.bool_],
    members: Sequence[bool] | None,
    protocol: Protocol,
) -> float:
    """Return the mean of the IoU (nan: absent from the truth) over the classes of a protocol."""
    occurs = ~np.isnan(iou)
    if protocol == "reference":
        occurs = occurs | is_predicted
    entering = np.nan_to_num(iou)[_chosen(members, len(iou)) & occurs]
    return float(entering.mean()) if entering.size else math.nan


def _divide(
    upper: NDArray[np.int64], lower: NDArray[np.int64], where: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the quotients, nan elsewhere."""
    quotients = np.full(upper.shape, np.nan)
    np.divide(upper, lower, out=quotients, where=where)
    return quotients
