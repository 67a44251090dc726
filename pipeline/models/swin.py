"""Swin as MaskFormer uses it, with a norm per feature map: transformers' own port of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers.models.maskformer.configuration_maskformer_swin import MaskFormerSwinConfig
from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinBackbone

from schemas.errors import ModelError

if TYPE_CHECKING:
    from pipeline.models.maskformer import BackboneConfig


class Swin(nn.Module):
    """Images of any size to four feature maps, at strides 4, 8, 16 and 32."""

    def __init__(self, config: MaskFormerSwinConfig) -> None:
        super().__init__()
        self.body = MaskFormerSwinBackbone(config)
        # A norm of the last hidden state, which is on the way to no feature map: workers that
        # train together would wait for its gradient.
        self.body.model.layernorm.requires_grad_(False)

    def forward(self, pixel_values_B3HW: Tensor) -> list[Tensor]:
        """Return the normed maps, finest first."""
        return list(self.body(pixel_values_B3HW).feature_maps)


PRESETS = {
    "swin-tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin-small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin-base": {
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
        "window_size": 12,
    },
}


def swin_backbone(config: BackboneConfig) -> tuple[nn.Module, list[int]]:
    """Return the Swin of a preset, changed by options of transformers' MaskFormerSwinConfig."""
    if config.name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ModelError(f"there is no swin {config.name!r}; there are {known}, and options")
    stages = ["stage1", "stage2", "stage3", "stage4"]
    options = {**PRESETS[config.name], **config.options}
    try:
        settings = MaskFormerSwinConfig(**options, out_features=stages)
        return Swin(settings), [settings.embed_dim * 2**stage for stage in range(4)]
    except (TypeError, ValueError) as error:
        raise ModelError(f"swin {config.name!r} with {config.options}: {error}") from None
