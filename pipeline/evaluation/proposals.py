"""Kept proposals against truths: recall, outlines, and the labels that an oracle would give them.

No image is read and no model runs: the masks are those that a dataset keeps with its embeddings.
Dimension key: Q proposals, h w grid of masks, H W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.evaluation.outlines import OutlineCounts, outline
from pipeline.evaluation.recall import BUDGETS, ProposalRecall, segment_ious
from pipeline.evaluation.truth_segments import TrueSegments, TruthFormat, read_segments
from pipeline.fusion import label_map
from pipeline.masks import Precision
from pipeline.metrics import BoundaryCounts, Confusion
from pipeline.oracle import oracle_scores
from pipeline.parts import read_row_group
from pipeline.resize import Size, resize_nearest
from pipeline.segments import IGNORE
from pipeline.stages.soft_masks import soft_masks
from pipeline.truth import read_indices
from schemas.errors import SettingsError

_MIN_PROB: Final = 0.5  # a pixel is in a mask above this
_MASKS_AT_ONCE: Final = 16  # at the size of the image
_COLUMNS: Final = (
    "image_id", "uri", "height", "width", "image_height", "image_width", "mask_logits",
    "mask_height", "mask_width", "n_proposals", "void_logits", "pixel_embeds",
)  # fmt: skip


@dataclass(frozen=True)
class ProposalUnit:
    """Rows of one row group of embeddings, by image_id, with the files of their truths."""

    path: str
    row_group: int
    truths: Mapping[str, Path]


@dataclass(frozen=True, eq=False)
class ProposalTotal:
    """What images add up to; `oracle` is of the labels that it gives, where truths have classes."""

    recall: ProposalRecall
    outlines: OutlineCounts  # of the first proposals, by budget
    oracle: Confusion
    oracle_boundary: BoundaryCounts

    @classmethod
    def zero(cls, num_classes: int) -> "ProposalTotal":
        """Return the neutral element."""
        return cls(
            ProposalRecall.zero(),
            OutlineCounts.zero(len(BUDGETS) + 1),
            Confusion.zero(num_classes),
            BoundaryCounts.zero(num_classes),
        )

    def __add__(self, other: "ProposalTotal") -> "ProposalTotal":
        return ProposalTotal(
            self.recall + other.recall,
            self.outlines + other.outlines,
            self.oracle + other.oracle,
            self.oracle_boundary + other.oracle_boundary,
        )


@dataclass(frozen=True)
class ProposalMeasure:
    """Units -> what their images add up to; a value that any process can be given."""

    dataset: str
    num_classes: int
    truth_format: TruthFormat
    ignore: int
    divisor: int  # images were padded to a multiple of this
    precision: Precision

    def __call__(self, units: Sequence[ProposalUnit], /) -> ProposalTotal:
        """Measure the images of units; raises SettingsError that names what does not fit."""
        torch.set_num_threads(1)  # others work beside
        return sum(map(self._unit, units), start=ProposalTotal.zero(self.num_classes))

    def _unit(self, unit: ProposalUnit) -> ProposalTotal:
        table = read_row_group(self.dataset, unit.path, unit.row_group).select(_COLUMNS)
        table = table.filter(pc.is_in(table["image_id"], pa.array(list(unit.truths))))
        total = ProposalTotal.zero(self.num_classes)
        for row in table.to_pylist():
            path = unit.truths[row["image_id"]]
            try:
                total += self._image(row, path)
            except ValueError as error:
                raise SettingsError(f"truth {path}: {error}") from None
        return total

    @torch.inference_mode()
    def _image(self, row: Mapping[str, Any], path: Path) -> ProposalTotal:
        if row["pixel_embeds"] is not None:
            raise SettingsError(
                "proposals cannot be measured: the proposer of this dataset compares pixels and "
                "makes none"
            )
        size = (row["height"], row["width"])
        truths = read_segments(path, self.truth_format, size, self.ignore)
        masks_QHW = soft_masks(dict(row), self.precision, self.divisor)
        none = ProposalTotal.zero(self.num_classes)
        oracle, boundary = none.oracle, none.oracle_boundary
        if self.truth_format == "classes":
            truth_HW = read_indices(path)
            labels_HW = self._oracle_labels(masks_QHW, truth_HW, size)
            oracle = Confusion.of(labels_HW, truth_HW, self.num_classes, self.ignore)
            boundary = BoundaryCounts.of(labels_HW, truth_HW, self.num_classes, self.ignore)
        ranked_QHW = masks_QHW[_ranking(row)]
        drawn = _Drawn(size, truths)
        iou_QG = segment_ious(drawn.while_drawing(_binary(ranked_QHW, size)), truths)
        return ProposalTotal(ProposalRecall.of(iou_QG), drawn.outlines(), oracle, boundary)

    def _oracle_labels(
        self, masks_QHW: Tensor, truth_HW: NDArray[np.int32], size: Size
    ) -> NDArray[np.int64]:
        """Return the labels that the oracle gives, as `annotate --oracle-truth` does."""
        small_HW = resize_nearest(truth_HW, (masks_QHW.shape[1], masks_QHW.shape[2]))
        scores_QK = oracle_scores(masks_QHW, small_HW, self.num_classes, self.ignore)
        labels = label_map(scores_QK, masks_QHW, size)
        return np.asarray(torch.where(labels.scores_HW > 0, labels.classes_HW, IGNORE).cpu())


class _Drawn:
    """The outlines of an image's first proposals, gathered while masks go by."""

    def __init__(self, size: Size, truths: TrueSegments) -> None:
        self._known_HW = np.any([ids_HW > 0 for ids_HW in truths.maps], axis=0)
        self._truths = truths
        self._drawn_HW = np.zeros(size, dtype=bool)
        self._after: list[NDArray[np.bool_]] = []  # the budgets so far

    def while_drawing(self, masks: Iterator[NDArray[np.bool_]]) -> Iterator[NDArray[np.bool_]]:
        """Yield the masks as they are."""
        for count, mask_HW in enumerate(masks, start=1):
            self._drawn_HW = self._drawn_HW | outline(mask_HW, self._known_HW)
            if count in BUDGETS:
                self._after.append(self._drawn_HW)
            yield mask_HW

    def outlines(self) -> OutlineCounts:
        """Return the counts (N,) by budget; of an image with fewer masks, those of all."""
        missing = len(BUDGETS) + 1 - len(self._after)
        true_outlines = [outline(ids_HW, self._known_HW) for ids_HW in self._truths.maps]
        return OutlineCounts.of([*self._after, *[self._drawn_HW] * missing], true_outlines)


def _ranking(row: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the proposals (Q,) from best to worst.

    A query head tells how little each is "no object"; other proposers give theirs in order.
    """
    if row["void_logits"] is None:
        return np.arange(row["n_proposals"])
    return np.argsort(np.frombuffer(row["void_logits"], dtype=np.float32), kind="stable")


def _binary(masks_QHW: Tensor, size: Size) -> Iterator[NDArray[np.bool_]]:
    """Yield each mask at the size of the original image, few at a time in memory."""
    for masks in torch.split(masks_QHW, _MASKS_AT_ONCE) if len(masks_QHW) else ():
        resized = interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
        yield from (resized > _MIN_PROB).cpu().numpy()
