"""Mask pooling: the feature map of a convolutional CLIP, averaged under every mask (approximate).

As in FC-CLIP (Yu et al., NeurIPS 2023): a CLIP's head takes the mean of the map, and here the mean
of what a mask covers, before it is projected. A mask over the whole image has CLIP's vector of it.

Dimension key: B images, V masks of one image, C channels, D embedding, y x grid of the map, P its
places, N these and one of no place, S side of the input.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.models.convnext import ConvNeXt
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward

from pipeline.models import ClassifierEntry
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.clip_positions import input_size
from pipeline.models.whole_image import (
    Tower,
    WholeImageClassifier,
    WholeImageSettings,
    attention_bias,
    check_side,
    tower_config,
)
from pipeline.resize import Size
from schemas.annotate_config import ClassifierSettings
from schemas.errors import ModelError

_STRIDE: Final = 32  # of the last feature map, for both kinds
_MEAN_POOLS: Final = ("", "avg")


class PooledConvNeXt:
    """Of a ConvNeXt the mean under a mask goes on as the mean of the map does: norm, projection."""

    def __init__(self, visual: TimmModel, side: int) -> None:
        self._visual = visual
        self.grid: Size = (side // _STRIDE, side // _STRIDE)

    def prepared(self) -> AbstractContextManager[None]:
        """Return no context: a ConvNeXt has no positions, see `Tower`."""
        return nullcontext()

    def encode(self, images_B3SS: Tensor, shares: Sequence[Tensor]) -> list[Tensor]:
        """Return vectors (V, D) of every image's masks, see `Tower`."""
        maps_BCyx = self._visual.trunk.forward_features(images_B3SS)
        means_BVC = [
            _means(map_Cyx.flatten(1).T, own)
            for map_Cyx, own in zip(maps_BCyx, shares, strict=True)
        ]
        pooled_VC11 = torch.cat(means_BVC)[:, :, None, None]
        vectors_VD = self._visual.head(self._visual.trunk.forward_head(pooled_VC11))
        return list(torch.split(vectors_VD, [len(own) for own in shares]))


class PooledResNet:
    """Of CLIP's ResNets the mean under a mask attends to the places that the mask covers."""

    def __init__(self, visual: ModifiedResNet, side: int) -> None:
        self._visual, self._side = visual, side
        self.grid: Size = (side // _STRIDE, side // _STRIDE)

    def prepared(self) -> AbstractContextManager[None]:
        """Return the context in which the tower takes inputs of the side, see `Tower`."""
        return input_size(self._visual, (self._side, self._side))

    def encode(self, images_B3SS: Tensor, shares: Sequence[Tensor]) -> list[Tensor]:
        """Return vectors (V, D) of every image's masks, see `Tower`."""
        visual = self._visual
        maps_BCyx = images_B3SS
        for part in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            maps_BCyx = part(maps_BCyx)
        positions_NC = visual.attnpool.positional_embedding.to(maps_BCyx.dtype)
        found = []
        for map_Cyx, shares_Vyx in zip(maps_BCyx, shares, strict=True):
            places_PC = map_Cyx.flatten(1).T
            masks_VC = _means(places_PC, shares_Vyx) + positions_NC[0]
            found.append(self._pooled(masks_VC, places_PC + positions_NC[1:], shares_Vyx))
        return found

    def _pooled(self, masks_VC: Tensor, places_PC: Tensor, shares_Vyx: Tensor) -> Tensor:
        """Return what CLIP's attention pool gives for each mask (V, D)."""
        if not len(masks_VC):
            return masks_VC.new_zeros((0, self._visual.output_dim))
        pool = self._visual.attnpool
        seen = torch.cat([masks_VC, places_PC])
        vectors_VD, _ = multi_head_attention_forward(
            query=masks_VC, key=seen, value=seen,
            embed_dim_to_check=seen.shape[1], num_heads=pool.num_heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
            out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias,
            use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
            k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
            training=False, need_weights=False,
            attn_mask=attention_bias([shares_Vyx], seen.dtype)[0],
        )  # fmt: skip
        return vectors_VD


def _means(places_PC: Tensor, shares_Vyx: Tensor) -> Tensor:
    """Return the mean (V, C) of what each mask covers."""
    shares_VP = shares_Vyx.flatten(1)
    weights_VP = shares_VP / shares_VP.sum(dim=1, keepdim=True)
    return weights_VP.to(places_PC.dtype) @ places_PC


def _settings(config: ClassifierSettings) -> WholeImageSettings:
    return WholeImageSettings(config.mask_threshold, config.image_side)


def _check(source: ClipSource, config: ClassifierSettings) -> None:
    """Raise ModelError for a CLIP that is not convolutional, and for a side that does not fit."""
    vision = tower_config(source)
    if not _is_convolutional(vision):
        kind = vision.get("timm_model_name") or "a ViT"
        raise ModelError(
            f"clip {source.name!r} has {kind} as its image tower; classifier pooling needs a "
            "ConvNeXt or one of CLIP's ResNets (one-pass takes ViTs, crops every CLIP)"
        )
    check_side(source, config.image_side, _STRIDE)


def _is_convolutional(vision: dict[str, Any]) -> bool:
    if name := vision.get("timm_model_name"):
        return "convnext" in name and vision.get("timm_pool", "avg") in _MEAN_POOLS
    return isinstance(vision.get("layers"), list)


def _load(clip: Clip, settings: WholeImageSettings, batch: int | None) -> WholeImageClassifier:
    visual, side = clip.model.visual, settings.side or clip.side
    tower: Tower
    if isinstance(visual, ModifiedResNet):
        tower = PooledResNet(visual, side)
    elif isinstance(visual, TimmModel) and isinstance(visual.trunk, ConvNeXt):
        tower = PooledConvNeXt(visual, side)
    else:
        raise ModelError(f"classifier pooling needs a ConvNeXt or ResNet, not {type(visual)}")
    return WholeImageClassifier(clip, tower, side, settings, batch)


POOLING: Final = ClassifierEntry(
    summary="one CLIP pass an image, means under masks (approximate; ConvNeXt, ResNet)",
    deciding=("mask_threshold", "image_side"),
    settings=_settings,
    check=_check,
    load=_load,
)
