"""Label: fusion of the scores, label map, segments; needs no pixels and no model.

Dimension key: K class names, Q proposals, V valid proposals, D embedding, H W image.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fingerprints import Fingerprints
from pipeline.fusion import (
    LabelMap,
    ScoreTile,
    fuse,
    label_map,
    query_probs,
    region_probs,
    score_tiles,
)
from pipeline.masks import Precision, SoftMasks
from pipeline.models.device import pick_device
from pipeline.oracle import oracle_scores
from pipeline.pixels import PixelScorer, pixel_score_tiles
from pipeline.quick_labels import quick_labels
from pipeline.resize import resize_nearest
from pipeline.segments import KeptLabels, encode_kept
from pipeline.stages.compact import is_compact, vectors
from pipeline.stages.rows import Row, is_quarantined, isolate_live, quarantine, rows_of
from pipeline.stages.soft_masks import masks_of, pixel_embeds
from pipeline.trust import HeadScores, SegmentTrust, segment_trust
from pipeline.truth import Truths
from schemas.annotation import ANNOTATED, MODEL, table_from_rows


@dataclass(frozen=True, eq=False)
class Label:
    """EMBEDDED -> ANNOTATED: what the vocabulary, the weights and the thresholds decide."""

    name: ClassVar[str] = "label"
    schema: ClassVar[pa.Schema] = ANNOTATED

    names: tuple[str, ...]
    seen: tuple[bool, ...] | None
    query_text_KD: NDArray[np.float32]
    region_text_KD: NDArray[np.float32]
    logit_scale: float
    ensemble_weight: float
    keep_invalid: bool
    min_score: float
    oracle_truth: str | None  # directory of label maps that take the place of all scores
    divisor: int
    precision: Precision
    fingerprints: Fingerprints
    run_id: str

    def warm_up(self) -> None:
        """List the oracle's truths, where it is asked."""
        _ = self.truths

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return the annotated rows."""
        return table_from_rows(self.on_rows(rows_of(images)), ANNOTATED)

    def on_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows of ANNOTATED."""
        return [self._written(row) for row in isolate_live(self._label_all, rows, self.name)]

    def _written(self, row: Row) -> Row:
        kept = {name: row[name] for name in ANNOTATED.names if name in row}
        fingerprint = self.fingerprints.label
        if is_compact(row):
            fingerprint = self.fingerprints.label_of_compact
        if is_quarantined(row):
            fingerprint = self.fingerprints.of_failure(row["error"]["stage"])
        made = {"fingerprint": fingerprint, "run_id": self.run_id, "annotator": MODEL}
        return {"segments": [], **kept, **made}

    @cached_property
    def truths(self) -> Truths | None:
        """The label maps of the oracle, listed at first use."""
        return None if self.oracle_truth is None else Truths.find(self.oracle_truth)

    def _label_all(self, rows: Sequence[Row]) -> list[Row]:
        if pick_device() == "cpu":
            return [self._annotated(*self._labelled(row)) for row in rows]
        # Encoding is numpy's work: a thread does it while the GPU labels the next image. Where both
        # are the processor's, they would only take the interpreter from each other.
        with ThreadPoolExecutor(1) as encoder:
            done = [encoder.submit(self._annotated, *self._labelled(row)) for row in rows]
        return [future.result() for future in done]

    @torch.inference_mode()
    def _labelled(self, row: Row) -> tuple[Row, LabelMap | KeptLabels | None, SegmentTrust | None]:
        """Return the row, what is kept of its label map, on the CPU (None: it has become
        quarantined), and how far to trust its segments (None: it has no masks).
        """
        size = (row["height"], row["width"])
        if row["pixel_embeds"] is not None:
            device = torch.device(pick_device())
            labels = LabelMap.of(self._pixel_tiles(row), size, device)
            return row, labels.kept(self.min_score).cpu(), None
        masks = masks_of(row, self.precision, self.divisor)
        try:
            scores = self._scores(row, masks)
        except ValueError as error:  # of this image alone, even where all of a batch fail
            if self.truths is None:
                raise
            return quarantine(row, self.name, "no_truth", str(error)), None, None
        if is_compact(row):
            sizes = (masks.padded, masks.size, size)
            kept = quick_labels(scores.fused_QK, masks.logits_Qhw, sizes, self.min_score)
            places = (
                torch.from_numpy(values).to(masks.logits_Qhw.device)
                for values in (kept.classes_HW, kept.occurring())
            )
            return row, kept, segment_trust(scores, masks, *places)
        labels = label_map(scores.fused_QK, masks, size).kept(self.min_score)
        trust = segment_trust(scores, masks, labels.classes_HW, labels.occurring())
        return row, labels.cpu(), trust

    def score_tiles(self, row: Row) -> Iterator[ScoreTile]:
        """Return the summed class scores of a row of EMBEDDED, from top to bottom (spec 2.7)."""
        if row["pixel_embeds"] is not None:
            return self._pixel_tiles(row)
        masks = masks_of(row, self.precision, self.divisor)
        return score_tiles(self._head_scores(row).fused_QK, masks, (row["height"], row["width"]))

    def _annotated(
        self, row: Row, labels: LabelMap | KeptLabels | None, trust: SegmentTrust | None
    ) -> Row:
        if labels is None:
            return row
        if isinstance(labels, LabelMap):
            labels = KeptLabels.of(
                labels.classes_HW.numpy(),
                labels.scores_HW.numpy(),
                labels.margins_HW.numpy(),
                len(self.names),
            )
        segments = encode_kept(labels, self.names)
        if trust is not None:
            segments = [segment | trust.of(segment["class_index"]) for segment in segments]
        area = sum(segment["area"] for segment in segments)
        weighted = sum(segment["score"] * segment["area"] for segment in segments)
        return {
            **row,
            "coverage": area / (row["height"] * row["width"]),
            "mean_score": weighted / area if area else None,
            "segments": segments,
        }

    def _pixel_tiles(self, row: Row) -> Iterator[ScoreTile]:
        embeds_Dhw = pixel_embeds(row, self.precision, self.query_text_KD.shape[1])
        scorer = PixelScorer(
            self._query_text_KD, self._region_probs(row), self._seen_K, self.ensemble_weight
        )
        image_size, size = (row["image_height"], row["image_width"]), (row["height"], row["width"])
        return pixel_score_tiles(embeds_Dhw, scorer, image_size, size)

    def _scores(self, row: Row, masks: SoftMasks) -> HeadScores:
        if self.truths is None or is_compact(row):
            return self._head_scores(row)
        truth_HW = self.truths.read(row["uri"], (row["height"], row["width"]))
        truth_HW = resize_nearest(truth_HW, (row["image_height"], row["image_width"]))
        fused_QK = oracle_scores(masks.whole(), truth_HW, len(self.names))
        every_Q = torch.ones(len(fused_QK), dtype=torch.bool, device=fused_QK.device)
        return HeadScores(None, None, every_Q, fused_QK)

    def _head_scores(self, row: Row) -> HeadScores:
        device = pick_device()
        num_dims = self.query_text_KD.shape[1]
        query_QK = None
        if row["query_embeds"] is not None:
            query_embeds_QD = _floats(row, "query_embeds").reshape(-1, num_dims)
            query_QK = query_probs(
                query_embeds_QD, self._query_text_KD, _floats(row, "void_logits")
            )
        valid_Q = torch.ones(row["n_proposals"], dtype=torch.bool, device=device)
        if row["clip_embeds"] is not None:
            valid_Q = torch.from_numpy(np.frombuffer(row["valid"], dtype=np.bool_).copy())
            valid_Q = valid_Q.to(device)
        region_VK = self._region_probs(row)
        fused_QK = fuse(
            query_QK,
            region_VK,
            valid_Q,
            self._seen_K,
            self.ensemble_weight,
            keep_invalid=self.keep_invalid,
        )
        # Without weight it had no say, and cannot disagree.
        heard_QK = query_QK if self.ensemble_weight > 0 else None
        return HeadScores(heard_QK, region_VK, valid_Q, fused_QK)

    def _region_probs(self, row: Row) -> Tensor | None:
        if row["clip_embeds"] is None:
            return None
        num_dims = self.region_text_KD.shape[1]
        clip_embeds_VD = _floats(row, "clip_embeds").reshape(-1, num_dims)
        return region_probs(clip_embeds_VD, self._region_text_KD, self.logit_scale)

    # What all images are compared with is sent to the device once.

    @cached_property
    def _query_text_KD(self) -> Tensor:
        return torch.from_numpy(self.query_text_KD).to(pick_device())

    @cached_property
    def _region_text_KD(self) -> Tensor:
        return torch.from_numpy(self.region_text_KD).to(pick_device())

    @cached_property
    def _seen_K(self) -> Tensor | None:
        return None if self.seen is None else torch.tensor(self.seen, device=pick_device())


def _floats(row: Row, name: str) -> Tensor:
    return torch.from_numpy(vectors(row, name)).to(pick_device())
