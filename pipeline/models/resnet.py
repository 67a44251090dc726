"""ResNets as the reference builds them (spec 1.1, 1.2): frozen batch norm, two stems, multi-grid.

The blocks are torchvision's; its models fix what varies here: the stem, widths of any size, and a
dilation per block at stride 32.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torchvision.models.resnet import (  # type: ignore[import-untyped] # ships no types
    Bottleneck,
    conv1x1,
)
from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped] # ships no types

from schemas.errors import ModelError

if TYPE_CHECKING:
    from pipeline.models.maskformer import BackboneConfig

Four = tuple[int, int, int, int]


class ResNetOptions(BaseModel):
    """Structure of a bottleneck ResNet; tuples of four are per stage, res2 to res5."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem: Literal["basic", "deeplab"]  # one 7x7 convolution, or three 3x3
    stem_channels: int
    blocks: Four
    bottleneck_channels: Four = (64, 128, 256, 512)
    out_channels: Four = (256, 512, 1024, 2048)
    res5_dilations: tuple[int, ...]  # one per block of res5, whose stride stays 32
    stride_in_1x1: bool = False

    @model_validator(mode="after")
    def _fits(self) -> ResNetOptions:
        if len(self.res5_dilations) != self.blocks[3]:
            raise ValueError(
                f"res5 has {self.blocks[3]} blocks, but {len(self.res5_dilations)} dilations"
            )
        odd = [width for width in self.out_channels if width % Bottleneck.expansion]
        if odd or self.stem_channels % 2:
            raise ValueError(f"widths of stages must be multiples of 4, of the stem of 2: {self}")
        return self


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "r50": {
        "stem": "basic",
        "stem_channels": 64,
        "blocks": (3, 4, 6, 3),
        "res5_dilations": (1, 1, 1),
    },
    "r101c": {
        "stem": "deeplab",
        "stem_channels": 128,
        "blocks": (3, 4, 23, 3),
        "res5_dilations": (1, 2, 4),
    },
}


class FrozenNorm(FrozenBatchNorm2d):  # type: ignore[misc] # untyped base
    """Frozen batch norm in the reference's order of operations: its features are equal bit by bit.

    At inference that is PyTorch's own kernel; where gradients are wanted, one multiply-add.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the frozen statistics."""
        if x.requires_grad:
            scaled: Tensor = super().forward(x)
            return scaled
        mean, variance = self.running_mean, self.running_var
        return batch_norm(x, mean, variance, self.weight, self.bias, training=False, eps=self.eps)


class ResNet(nn.Module):
    """Images to the feature maps res2 to res5, at strides 4, 8, 16 and 32."""

    def __init__(self, options: ResNetOptions) -> None:
        super().__init__()
        self.stem = _stem(options)
        channels = options.stem_channels
        for index, (blocks, width, out) in enumerate(
            zip(options.blocks, options.bottleneck_channels, options.out_channels, strict=True)
        ):
            last = index == 3
            dilations = options.res5_dilations if last else (1,) * blocks
            strides = [1 if index == 0 else 2] + [1] * (blocks - 1)
            stage = nn.Sequential()
            for dilation, stride in zip(dilations, strides, strict=True):
                block = _block(channels, width, out, stride, dilation)
                if options.stride_in_1x1:
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
                stage.append(block)
                channels = out
            self.add_module(f"res{index + 2}", stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values_B3HW: Tensor) -> list[Tensor]:
        """Return res2 to res5, finest first."""
        features = self.stem(pixel_values_B3HW)
        maps = []
        for name in ("res2", "res3", "res4", "res5"):
            features = self.get_submodule(name)(features)
            maps.append(features)
        return maps


def resnet_backbone(config: BackboneConfig) -> tuple[nn.Module, list[int]]:
    """Return the ResNet of a preset, changed by the options; raises ModelError for a wrong one."""
    if config.name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ModelError(f"there is no resnet {config.name!r}; there are {known}, and options")
    try:
        options = ResNetOptions.model_validate({**PRESETS[config.name], **config.options})
    except ValidationError as error:
        raise ModelError(f"resnet {config.name!r}: {error}") from None
    return ResNet(options), list(options.out_channels)


def _stem(options: ResNetOptions) -> nn.Sequential:
    out = options.stem_channels
    widths = [out] if options.stem == "basic" else [out // 2, out // 2, out]
    kernel = 7 if options.stem == "basic" else 3
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for number, width in enumerate(widths, start=1):
        layers[f"conv{number}"] = nn.Conv2d(
            channels,
            width,
            kernel,
            stride=2 if number == 1 else 1,
            padding=kernel // 2,
            bias=False,
        )
        layers[f"bn{number}"] = FrozenNorm(width)
        layers[f"act{number}"] = nn.ReLU(inplace=True)
        channels = width
    layers["pool"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return nn.Sequential(layers)


def _block(channels: int, width: int, out: int, stride: int, dilation: int) -> Bottleneck:
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(conv1x1(channels, out, stride), FrozenNorm(out))
    planes = out // Bottleneck.expansion
    return Bottleneck(
        channels,
        planes,
        stride,
        shortcut,
        # torchvision takes the integer part of planes * base_width / 64, which must be `width`.
        base_width=64 * width / planes + 1e-6,
        dilation=dilation,
        norm_layer=FrozenNorm,
    )
