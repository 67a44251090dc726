"""The method as its reference runs it: eager, an image at a time, one step per mask (spec 2, 8).

All decoder layers through all heads; masks of the whole padded image, resized once more to the size
that they have; a box, a fill and an interpolation per mask; scores of all classes at all pixels; a
run-length encoding per class. It uses none of what `pipeline` does for speed, only its networks.

Dimension key: Q proposals, V valid ones, K class names, D embedding, L decoder layers, H W pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from pipeline.models.maskformer import LayerOutput, MaskFormer
from pipeline.resize import Size, padded_size
from tests.bench.stopwatch import Stopwatch

THRESHOLD = 0.5
SCALE = 100.0


@dataclass(frozen=True)
class Vocabulary:
    text_KD: Tensor
    seen_K: Tensor
    weight: float


@dataclass(frozen=True)
class Eager:
    """One image after the other; `watch` counts the seconds of each step."""

    proposer: MaskFormer
    clip: Any  # open_clip's model
    clip_mean: tuple[float, ...]
    clip_std: tuple[float, ...]
    vocabulary: Vocabulary
    watch: Stopwatch

    def propose(self, image_HW3: NDArray[np.uint8]) -> LayerOutput:
        """Return the last layer's proposals (batch of 1)."""
        with self.watch("propose"):
            config = self.proposer.config
            pixels_3HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1).float()
            mean, std = (_column(value) for value in (config.pixel_mean, config.pixel_std))
            padded = padded_size(_size(image_HW3), config.size_divisibility)
            down, right = (full - own for full, own in zip(padded, _size(image_HW3), strict=True))
            batch_13HW = torch.nn.functional.pad((pixels_3HW - mean) / std, (0, right, 0, down))
            features = self.proposer.backbone(batch_13HW[None])
            mask_features = self.proposer.pixel_decoder(features).last_hidden_state
            layers = self.proposer._decode(features[-1])
            return [self.proposer._heads(hidden, mask_features) for hidden in layers][-1]

    def label(
        self, image_HW3: NDArray[np.uint8], found: LayerOutput, size: Size
    ) -> list[dict[str, Any]]:
        """Return the segments at the original `size`."""
        with self.watch("masks"):
            masks_QHW = self._masks(found.mask_logits_BQhw, _size(image_HW3))
        with self.watch("crops"):
            valid_Q, crops = self._crops(image_HW3, masks_QHW)
        with self.watch("clip"):
            embeds_VD = normalize(self.clip.encode_image(torch.stack(crops)), dim=1)
        with self.watch("scores"):
            scores_QK = self._scores(found, valid_Q, embeds_VD)
        with self.watch("assembly"):
            classes_HW, shares_HW = self._assemble(scores_QK, masks_QHW, size)
        with self.watch("segments"):
            return self._segments(classes_HW, shares_HW)

    def _masks(self, logits_1Qhw: Tensor, size: Size) -> Tensor:
        padded = padded_size(size, self.proposer.config.size_divisibility)
        upsampled = interpolate(logits_1Qhw, size=padded, mode="bilinear", align_corners=False)
        cropped = upsampled[:, :, : size[0], : size[1]]
        return interpolate(cropped, size=size, mode="bilinear", align_corners=False)[0].sigmoid()

    def _crops(
        self, image_HW3: NDArray[np.uint8], masks_QHW: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        pixels_3HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1).float()
        mean, std = _column(self.clip_mean) * 255, _column(self.clip_std) * 255
        binary_QHW = masks_QHW > THRESHOLD
        valid_Q = torch.stack([mask_HW.any() for mask_HW in binary_QHW])
        crops = []
        for mask_HW in binary_QHW[valid_Q]:
            columns, rows = (torch.where(mask_HW.any(dim=axis))[0] for axis in (0, 1))
            box = (
                slice(int(rows[0]), int(rows[-1]) + 1),
                slice(int(columns[0]), int(columns[-1]) + 1),
            )
            inside = mask_HW[box].float()
            crop_3HW = pixels_3HW[:, *box] * inside + mean * (1 - inside)
            crop_3HW = (crop_3HW - mean) / std
            crops.append(
                interpolate(crop_3HW[None], size=(224, 224), mode="bicubic", align_corners=False)[0]
            )
        return valid_Q, crops

    def _scores(self, found: LayerOutput, valid_Q: Tensor, embeds_VD: Tensor) -> Tensor:
        text_KD, weight = self.vocabulary.text_KD, self.vocabulary.weight
        query_QK = found.class_logits(text_KD)[0].softmax(dim=1)[:, :-1]
        clip_QK = torch.ones_like(query_QK)
        clip_QK[valid_Q] = (SCALE * embeds_VD @ text_KD.T).softmax(dim=1)
        seen = query_QK**weight * clip_QK ** (1 - weight)
        unseen = query_QK ** (1 - weight) * clip_QK**weight
        return torch.where(self.vocabulary.seen_K, seen, unseen)

    def _assemble(self, scores_QK: Tensor, masks_QHW: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        # The sum of all masks, one row more, is what Segmill's scores are shares of.
        with_sum_QL = torch.cat([scores_QK, torch.ones_like(scores_QK[:, :1])], dim=1)
        summed = torch.einsum("qk,qhw->khw", with_sum_QL, masks_QHW)
        resized = interpolate(summed[None], size=size, mode="bilinear", align_corners=False)[0]
        best_HW, classes_HW = resized[:-1].max(dim=0)
        return classes_HW, best_HW / resized[-1].clamp_min(1e-12)

    def _segments(self, classes_HW: Tensor, shares_HW: Tensor) -> list[dict[str, Any]]:
        classes, shares = classes_HW.numpy(), shares_HW.numpy()
        segments = []
        for index in np.unique(classes):
            mask_HW = classes == index
            rows, columns = (mask_HW.any(axis=axis).nonzero()[0] for axis in (1, 0))
            encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
            segments.append(
                {
                    "class_index": int(index),
                    "score": float(shares[mask_HW].mean(dtype=np.float64)),
                    "area": int(mask_HW.sum()),
                    "box": [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1],
                    "counts": encoded["counts"],
                }
            )
        return segments


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _size(image_HW3: NDArray[np.uint8]) -> Size:
    return image_HW3.shape[0], image_HW3.shape[1]
