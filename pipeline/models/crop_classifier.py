"""The paper's region classifier: every masked crop through CLIP (spec 2.4, 2.5)."""

import logging
from collections.abc import Iterable, Iterator
from typing import Final

import torch
from torch import Tensor

from pipeline.masks import SoftMasks
from pipeline.models import ClassifierEntry, RegionEmbedder, RegionEmbeds
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.models.passes import passes_at_once
from pipeline.models.shared_vectors import SharedVectors
from schemas.annotate_config import ClassifierSettings

logger = logging.getLogger(__name__)


class CropClassifier:
    """Crops of many images in one CLIP batch; no more are held than go through CLIP at once."""

    def __init__(self, clip: Clip, settings: CropSettings, crop_batch: int | None) -> None:
        self._clip = clip
        self._settings = settings
        self._crop_batch = crop_batch or clip.per_pass(clip.side)
        # Who gives a number bounds the memory by it.
        self._at_once = 1 if crop_batch else passes_at_once(clip.device)

    @torch.inference_mode()
    def embed(self, regions: Iterable[tuple[Tensor, Tensor | SoftMasks]]) -> list[RegionEmbeds]:
        """Return the CLIP vectors of every image's valid proposals."""
        valid: list[Tensor] = []
        counts: list[int] = []

        def crops() -> Iterator[Tensor]:
            for image_3HW, masks in regions:
                cut = crop_regions(
                    image_3HW,
                    masks,
                    self._settings,
                    side=self._clip.side,
                    mean=self._clip.mean,
                    std=self._clip.std,
                )
                valid.append(cut.valid_Q)
                counts.append(len(cut.crops_V3SS))
                yield cut.crops_V3SS

        held = self._crop_batch * self._at_once
        embeds = [self._encode(batch) for batch in batches_of(crops(), held)]
        if not valid:
            return []
        nothing = torch.zeros((0, 0), device=valid[0].device)
        parts = torch.split(torch.cat(embeds) if embeds else nothing, counts)
        return [RegionEmbeds(*pair) for pair in zip(valid, parts, strict=True)]

    def _encode(self, crops_N3SS: Tensor) -> Tensor:
        """Return the vectors (N, D); where the GPU cannot hold a batch of crops, halve it for good.

        A single crop that does not fit raises torch's OutOfMemoryError.
        """
        while True:
            try:
                return self._clip.encode_crops(crops_N3SS, self._crop_batch, self._at_once)
            except torch.OutOfMemoryError:
                if self._crop_batch == 1:
                    raise
            self._crop_batch = min(self._crop_batch, len(crops_N3SS)) // 2 or 1
            logger.warning("out of GPU memory: %d crops a batch from now on", self._crop_batch)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def batches_of(parts: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Yield all rows of some tensors, `count` at a time, the last ones fewer.

    Only a batch of rows of several tensors is a copy.
    """
    waiting: list[Tensor] = []
    for part in parts:
        missing = count - sum(map(len, waiting))
        while len(part) >= missing:
            yield _joined([*waiting, part[:missing]])
            waiting, part, missing = [], part[missing:], count
        if len(part):
            waiting.append(part)
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _settings(config: ClassifierSettings) -> CropSettings:
    return CropSettings(
        config.mask_threshold,
        config.mask_fill,
        config.mask_expand_ratio,
        config.mask_matting,
        config.prune_iou,
    )


def _check(source: ClipSource, config: ClassifierSettings) -> None:
    """Every CLIP takes crops; what their side must be, its own description knows."""


def _load(clip: Clip, settings: CropSettings, crop_batch: int | None) -> RegionEmbedder:
    classifier = CropClassifier(clip, settings, crop_batch)
    if settings.min_shared_iou is None:
        return classifier
    return SharedVectors(classifier, settings.min_shared_iou, settings.mask_threshold)


CROPS: Final = ClassifierEntry(
    summary="masked crops through CLIP (the paper's)",
    deciding=(
        "mask_threshold", "mask_fill", "mask_expand_ratio", "mask_matting", "crop_side",
        "prune_iou",
    ),
    settings=_settings,
    check=_check,
    load=_load,
)  # fmt: skip
