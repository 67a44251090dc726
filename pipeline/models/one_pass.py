"""Masked attention: a class token per mask in the last layers of one CLIP pass (approximate).

As in "Open-Vocabulary Universal Image Segmentation with MaskCLIP" (Ding et al., 2023) and MAFT's
IP-CLIP, but without training: a copy of the class token for every mask attends to itself and to
the patches that the mask covers, and nothing attends to it. The image's own tokens are computed as
ever, so that a mask over the whole image has CLIP's vector of that image.

Dimension key: B images, Q masks of the image with most, V masks of one image, N class token and
patches, K what mask tokens attend to, C width, D embedding, S side of the input.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from pipeline.models import ClassifierEntry
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.clip_positions import input_size
from pipeline.models.whole_image import (
    WholeImageClassifier,
    WholeImageSettings,
    attention_bias,
    check_side,
    tower_config,
)
from pipeline.resize import Size
from schemas.annotate_config import ClassifierSettings
from schemas.errors import ModelError

# Options of open_clip's config that give a tower blocks of another kind, without cross-attention.
_CUSTOM_BLOCKS: Final = (
    "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
)  # fmt: skip


class MaskTokens:
    """A ViT of open_clip, with a token per mask in its last `layers` layers."""

    def __init__(self, visual: VisionTransformer, side: int, layers: int) -> None:
        self._visual, self._side, self._layers = visual, side, layers

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        height, width = self._visual.patch_size
        return self._side // height, self._side // width

    def prepared(self) -> AbstractContextManager[None]:
        """Return the context in which the tower takes inputs of the side, see `Tower`."""
        return input_size(self._visual, (self._side, self._side))

    def encode(self, images_B3SS: Tensor, shares: Sequence[Tensor]) -> list[Tensor]:
        """Return vectors (V, D) of every image's masks, see `Tower`."""
        visual = self._visual
        image_BNC = visual._embeds(images_B3SS)
        blocks = list(visual.transformer.resblocks)
        first = len(blocks) - self._layers
        for block in blocks[:first]:
            image_BNC = block(image_BNC)
        bias_BQK = attention_bias(shares, image_BNC.dtype)
        masks_BQC = image_BNC[:, :1].expand(-1, bias_BQK.shape[1], -1)
        for number, block in enumerate(blocks[first:], start=1):
            seen_BKC = torch.cat([masks_BQC, image_BNC[:, 1:]], dim=1)
            masks_BQC = _attend(block, masks_BQC, seen_BKC, bias_BQK)
            if number < self._layers:  # no one asks for the image's own last tokens
                image_BNC = block(image_BNC)
        vectors_BQD = visual.ln_post(masks_BQC)
        if visual.proj is not None:
            vectors_BQD = vectors_BQD @ visual.proj
        return [vectors_QD[: len(own)] for vectors_QD, own in zip(vectors_BQD, shares, strict=True)]


def _attend(
    block: ResidualAttentionBlock, masks_BQC: Tensor, seen_BKC: Tensor, bias_BQK: Tensor
) -> Tensor:
    """Return the mask tokens after a block; they are the first of what they attend to."""
    normed_BKC = block.ln_1(seen_BKC)
    bias = bias_BQK.repeat_interleave(block.attn.num_heads, dim=0)
    attended_BQC = block.attention(
        normed_BKC[:, : masks_BQC.shape[1]], normed_BKC, normed_BKC, attn_mask=bias
    )
    masks_BQC = masks_BQC + block.ls_1(attended_BQC)
    result_BQC: Tensor = masks_BQC + block.ls_2(block.mlp(block.ln_2(masks_BQC)))
    return result_BQC


def _settings(config: ClassifierSettings) -> WholeImageSettings:
    return WholeImageSettings(config.mask_threshold, config.image_side, config.one_pass_layers)


def _check(source: ClipSource, config: ClassifierSettings) -> None:
    """Raise ModelError for a CLIP without class token, and for a side or layers that do not fit."""
    vision = tower_config(source)
    obstacle = _obstacle(vision)
    if obstacle:
        raise ModelError(
            f"clip {source.name!r} {obstacle}; classifier one-pass needs a ViT of open_clip's own "
            "with a class token (pooling takes ConvNeXts and CLIP's ResNets, crops every CLIP)"
        )
    depth, layers = vision.get("layers", 12), config.one_pass_layers
    if layers is not None and layers > depth:
        raise ModelError(
            f"one_pass_layers is {layers}, but clip {source.name!r} has {depth} layers; it must be "
            f"1 to {depth}"
        )
    check_side(source, config.image_side, vision.get("patch_size", 16))


def _obstacle(vision: dict[str, Any]) -> str | None:
    if vision.get("timm_model_name"):
        return f"has an image tower of timm ({vision['timm_model_name']})"
    if isinstance(vision.get("layers"), list):
        return "is a ResNet"
    if vision.get("attentional_pool"):
        return "pools its patches by attention"
    if vision.get("pool_type", "tok") != "tok":
        return "takes the mean of its patches"
    if vision.get("block_type") == "custom" or any(map(vision.get, _CUSTOM_BLOCKS)):
        return "has blocks of its own kind"
    return None


def _load(clip: Clip, settings: WholeImageSettings, batch: int | None) -> WholeImageClassifier:
    visual = clip.model.visual
    if not isinstance(visual, VisionTransformer):
        raise ModelError(f"classifier one-pass needs a ViT, not a {type(visual).__name__}")
    side = settings.side or clip.side
    layers = settings.layers or len(visual.transformer.resblocks)
    return WholeImageClassifier(clip, MaskTokens(visual, side, layers), side, settings, batch)


ONE_PASS: Final = ClassifierEntry(
    summary="one CLIP pass an image, a class token per mask (approximate; ViT)",
    deciding=("mask_threshold", "image_side", "one_pass_layers"),
    settings=_settings,
    check=_check,
    load=_load,
)
