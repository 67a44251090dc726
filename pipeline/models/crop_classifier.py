"""The paper's region classifier: every masked crop through CLIP (spec 2.4, 2.5)."""

import logging
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from pipeline.masks import SoftMasks
from pipeline.models import ClassifierEntry, RegionEmbeds
from pipeline.models.clip import Clip
from pipeline.models.crops import CropSettings, crop_regions

logger = logging.getLogger(__name__)


class CropClassifier:
    """Crops of many images in one CLIP batch; only the crops are held, never the masks."""

    def __init__(self, clip: Clip, settings: CropSettings, crop_batch: int) -> None:
        self._clip = clip
        self._settings = settings
        self._crop_batch = crop_batch

    @torch.inference_mode()
    def embed(self, regions: Iterable[tuple[Tensor, Tensor | SoftMasks]]) -> list[RegionEmbeds]:
        """Return the CLIP vectors of every image's valid proposals."""
        valid, crops = [], []
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
            crops.append(cut.crops_V3SS)
        if not crops:
            return []
        embeds_ND = self._encode(torch.cat(crops))
        parts = torch.split(embeds_ND, [len(part) for part in crops])
        return [RegionEmbeds(*pair) for pair in zip(valid, parts, strict=True)]

    def _encode(self, crops_N3SS: Tensor) -> Tensor:
        """Return the vectors (N, D); where the GPU cannot hold a batch of crops, halve it for good.

        A single crop that does not fit raises torch's OutOfMemoryError.
        """
        while True:
            try:
                return self._clip.encode_crops(crops_N3SS, self._crop_batch)
            except torch.OutOfMemoryError:
                if self._crop_batch == 1:
                    raise
            self._crop_batch = min(self._crop_batch, len(crops_N3SS)) // 2 or 1
            logger.warning("out of GPU memory: %d crops a batch from now on", self._crop_batch)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


CROPS: Final = ClassifierEntry(
    summary="masked crops through CLIP (the paper's)",
    load=CropClassifier,
)
