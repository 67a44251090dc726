"""Classify: CLIP scores, fusion, label map, segments (GPU pool B).

Dimension key: K class names, Q proposals, V valid proposals, D embedding, H W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fusion import LabelMap, fuse, label_map, query_probs, region_probs
from pipeline.masks import Precision, mask_probs, unpack_logits
from pipeline.models import RegionEmbedder, RegionEmbeds, find_classifier
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings
from pipeline.models.device import pick_device
from pipeline.oracle import oracle_scores
from pipeline.pixels import PixelScorer, pixel_score_tiles
from pipeline.resize import padded_size, resize_nearest
from pipeline.segments import encode_segments
from pipeline.stages.rows import Row, image_of, is_quarantined, isolate
from pipeline.truth import Truths, read_label_map
from schemas.annotation import ANNOTATED, table_from_rows


@dataclass(frozen=True, eq=False)
class Classify:
    """PROPOSED -> ANNOTATED: CLIP scores, fusion, label map, segments."""

    name: ClassVar[str] = "classify"
    schema: ClassVar[pa.Schema] = ANNOTATED

    classifier: str
    clip: ClipSource
    crops: CropSettings
    crop_batch: int
    names: tuple[str, ...]
    seen: tuple[bool, ...] | None
    query_text_KD: NDArray[np.float32]
    region_text_KD: NDArray[np.float32]
    logit_scale: float
    ensemble: bool
    ensemble_weight: float
    keep_invalid: bool
    min_score: float
    oracle_truth: str | None  # directory of label maps that take the place of all scores
    divisor: int
    precision: Precision
    fingerprint: str
    run_id: str

    @cached_property
    def embedder(self) -> RegionEmbedder:
        """The region classifier with its CLIP, loaded at first use."""
        clip = Clip.load(self.clip, pick_device())
        return find_classifier(self.classifier).load(clip, self.crops, self.crop_batch)

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return the annotated rows; crops of all images share CLIP's batches."""
        rows = images.to_pylist()
        live = [index for index, row in enumerate(rows) if not is_quarantined(row)]
        results = isolate(self._classify, [rows[index] for index in live], self.name)
        for index, result in zip(live, results, strict=True):
            rows[index] = result
        return table_from_rows([self._written(row) for row in rows], ANNOTATED)

    def _written(self, row: Row) -> Row:
        kept = {name: row[name] for name in ANNOTATED.names if name in row}
        return {"segments": [], **kept, "fingerprint": self.fingerprint, "run_id": self.run_id}

    @cached_property
    def truths(self) -> Truths | None:
        """The label maps of the oracle, listed at first use."""
        return None if self.oracle_truth is None else Truths.find(self.oracle_truth)

    @torch.inference_mode()
    def _classify(self, rows: Sequence[Row]) -> list[Row]:
        embeds: Sequence[RegionEmbeds | None] = [None] * len(rows)
        if self.ensemble and self.oracle_truth is None:
            # Masks are made again for the label map: holding those of a whole batch would cost
            # hundreds of megabytes an image, making them costs one interpolation.
            embeds = self.embedder.embed((_pixels(row), self._masks(row)) for row in rows)
        return [self._label(row, found) for row, found in zip(rows, embeds, strict=True)]

    def _masks(self, row: Row) -> Tensor:
        size = (row["image_height"], row["image_width"])
        if row["pixel_embeds"] is not None:  # no proposals: CLIP sees the image as one region
            return torch.ones((1, *size), device=pick_device())
        logits_Qhw = self._grid(row, "mask_logits", row["n_proposals"])
        return mask_probs(logits_Qhw, padded_size(size, self.divisor), size)

    def _grid(self, row: Row, column: str, channels: int) -> Tensor:
        shape = (channels, row["mask_height"], row["mask_width"])
        packed = np.frombuffer(row[column], dtype=self.precision).reshape(shape)
        return unpack_logits(packed.copy(), pick_device())

    def _label(self, row: Row, regions: RegionEmbeds | None) -> Row:
        labels = self._labels(row, regions)
        segments = encode_segments(
            labels.classes_HW.cpu().numpy(),
            labels.scores_HW.cpu().numpy(),
            self.names,
            self.min_score,
        )
        area = sum(segment["area"] for segment in segments)
        weighted = sum(segment["score"] * segment["area"] for segment in segments)
        return {
            **row,
            "coverage": area / (row["height"] * row["width"]),
            "mean_score": weighted / area if area else None,
            "segments": segments,
        }

    def _labels(self, row: Row, regions: RegionEmbeds | None) -> LabelMap:
        size = (row["height"], row["width"])
        if row["pixel_embeds"] is not None:
            embeds_Dhw = self._grid(row, "pixel_embeds", self.query_text_KD.shape[1])
            image_size = (row["image_height"], row["image_width"])
            tiles = pixel_score_tiles(embeds_Dhw, self._pixel_scorer(regions), image_size, size)
            return LabelMap.of(tiles, size, embeds_Dhw.device)
        masks_QHW = self._masks(row)
        if self.truths is not None:
            class_scores_QK = self._oracle_scores(row, masks_QHW, self.truths)
        else:
            class_scores_QK = self._class_scores(row, regions)
        return label_map(class_scores_QK, masks_QHW, size)

    def _pixel_scorer(self, regions: RegionEmbeds | None) -> PixelScorer:
        device = pick_device()
        clip_probs_1K = None
        if regions is not None:
            region_text_KD = torch.from_numpy(self.region_text_KD).to(device)
            clip_probs_1K = region_probs(regions.clip_embeds_VD, region_text_KD, self.logit_scale)
        seen_K = None if self.seen is None else torch.tensor(self.seen, device=device)
        text_KD = torch.from_numpy(self.query_text_KD).to(device)
        return PixelScorer(text_KD, clip_probs_1K, seen_K, self.ensemble_weight)

    def _oracle_scores(self, row: Row, masks_QHW: Tensor, truths: Truths) -> Tensor:
        path = truths.of(row["uri"])
        if path is None:
            raise ValueError(f"there is no truth for the oracle in {self.oracle_truth}")
        truth_HW = resize_nearest(read_label_map(path), (row["image_height"], row["image_width"]))
        return oracle_scores(masks_QHW, truth_HW, len(self.names))

    def _class_scores(self, row: Row, regions: RegionEmbeds | None) -> Tensor:
        device = pick_device()
        num_dims = self.query_text_KD.shape[1]
        query_QK = region_VK = None
        if row["query_embeds"] is not None:
            query_embeds_QD = _floats(row["query_embeds"]).reshape(-1, num_dims)
            text_KD = torch.from_numpy(self.query_text_KD).to(device)
            query_QK = query_probs(query_embeds_QD, text_KD, _floats(row["void_logits"]))
        valid_Q = torch.ones(row["n_proposals"], dtype=torch.bool, device=device)
        if regions is not None:
            valid_Q = regions.valid_Q
            clip_embeds_VD = regions.clip_embeds_VD.reshape(-1, num_dims)
            text_KD = torch.from_numpy(self.region_text_KD).to(device)
            region_VK = region_probs(clip_embeds_VD, text_KD, self.logit_scale)
        seen_K = None if self.seen is None else torch.tensor(self.seen, device=device)
        return fuse(
            query_QK,
            region_VK,
            valid_Q,
            seen_K,
            self.ensemble_weight,
            keep_invalid=self.keep_invalid,
        )


def _pixels(row: Row) -> Tensor:
    return torch.from_numpy(image_of(row).copy()).permute(2, 0, 1).to(pick_device())


def _floats(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy()).to(pick_device())
