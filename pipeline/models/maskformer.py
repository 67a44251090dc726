"""MaskFormer with a query embedding instead of a class layer (spec 1.2), from transformers' parts.

Dimension key: B images, Q queries, D embedding, C hidden channels, L decoder layers, K class names,
H W padded pixels, h w mask grid (a quarter of H W), N feature positions.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import MaskFormerDetrConfig
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerDetrDecoderLayer,
    MaskformerMLPPredictionHead,
    MaskFormerPixelDecoder,
    MaskFormerSinePositionEmbedding,
)

from pipeline.models.model_directory import load_weights, read_config, save_network
from schemas.errors import ModelError

LOGIT_SCALE: Final = 100.0


class BackboneConfig(BaseModel):
    """Which feature extractor, and its options; `kind` is a key of `BACKBONES`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "timm"
    name: str = "resnet50"
    options: dict[str, Any] = Field(default_factory=dict)


class NetworkConfig(BaseModel):
    """What every network on a backbone and an FPN shares; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneConfig = BackboneConfig()
    fpn_channels: int = 256  # a multiple of 32, for GroupNorm(32)
    mask_channels: int = 256
    embedding_dim: int = 512  # of the CLIP whose text vectors its embeddings are compared with
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisibility: int = 32
    short_edge: int = 640
    long_edge: int = 2560
    seen_classes: tuple[str, ...] = ()  # names it was trained on
    licence: str = "unknown"
    provenance: str = ""  # how the weights came about: command, seed, source


class MaskFormerConfig(NetworkConfig):
    """Structure and preprocessing of one MaskFormer."""

    hidden_channels: int = 256
    heads: int = 8
    feedforward_channels: int = 2048
    decoder_layers: int = 6
    dropout: float = 0.1
    queries: int = 100
    query_head_channels: int = 1024
    query_head_layers: int = 2


@dataclass(frozen=True)
class LayerOutput:
    """What the heads read off one decoder layer.

    `mask_logits_BQhw` are before the sigmoid, on the stride-4 grid of the padded input.
    `query_embeds_BQD` have unit length. `void_logits_BQ` are the scaled cosines with the learned
    no-object vector.
    """

    mask_logits_BQhw: Tensor
    query_embeds_BQD: Tensor
    void_logits_BQ: Tensor

    def class_logits(self, text_KD: Tensor) -> Tensor:
        """Return (B, Q, K+1): scaled cosines with unit text vectors, no-object last."""
        class_logits_BQK = LOGIT_SCALE * self.query_embeds_BQD @ text_KD.T
        return torch.cat([class_logits_BQK, self.void_logits_BQ[..., None]], dim=-1)


@dataclass(frozen=True)
class MaskFormerOutput(LayerOutput):
    """The last layer's output; `aux` holds the earlier layers', in training mode only."""

    aux: tuple[LayerOutput, ...] = ()


class MaskFormer(nn.Module):
    """Backbone, FPN pixel decoder, and a transformer decoder without encoder."""

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_channels
        self.backbone, widths = build_backbone(config.backbone)
        self.pixel_decoder = pixel_decoder(config, widths)
        self.input_projection = nn.Conv2d(widths[-1], hidden, kernel_size=1)
        self.position = MaskFormerSinePositionEmbedding(hidden // 2, normalize=True)
        self.queries = nn.Embedding(config.queries, hidden)
        layer_config = _layer_config(config)
        self.decoder_layers = nn.ModuleList(
            MaskFormerDetrDecoderLayer(layer_config) for _ in range(config.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden)
        self.mask_head = MaskformerMLPPredictionHead(hidden, hidden, config.mask_channels, 3)
        self.query_head = MaskformerMLPPredictionHead(
            hidden,
            config.query_head_channels,
            config.embedding_dim,
            config.query_head_layers,
        )
        self.no_object = nn.Parameter(
            torch.randn(config.embedding_dim) * config.embedding_dim**-0.5
        )
        self._initialise()

    def forward(self, pixel_values_B3HW: Tensor) -> MaskFormerOutput:
        """Propose masks for normalised images, zero-padded to a multiple of `size_divisibility`.

        Padding is visible to the network: results depend on the padded size (spec 2.2).
        """
        features = self.backbone(pixel_values_B3HW)
        mask_features_BChw = self.pixel_decoder(features).last_hidden_state
        hidden_per_layer = self._decode(features[-1])
        if not self.training:
            hidden_per_layer = hidden_per_layer[-1:]
        *earlier, last = (self._heads(hidden, mask_features_BChw) for hidden in hidden_per_layer)
        return MaskFormerOutput(**vars(last), aux=tuple(earlier))

    def _decode(self, feature_BCHW: Tensor) -> list[Tensor]:
        """Return the normed queries (B, Q, C) after every decoder layer."""
        memory_BChw = self.input_projection(feature_BCHW)
        position_BChw = self.position(memory_BChw.shape, memory_BChw.device, memory_BChw.dtype)
        memory_BNC = memory_BChw.flatten(2).transpose(1, 2)
        queries_BQC = self.queries.weight.expand(len(memory_BNC), -1, -1)
        hidden_BQC = torch.zeros_like(queries_BQC)
        outputs = []
        for layer in self.decoder_layers:
            hidden_BQC = layer(
                hidden_BQC,
                spatial_position_embeddings=position_BChw.flatten(2).transpose(1, 2),
                object_queries_position_embeddings=queries_BQC,
                encoder_hidden_states=memory_BNC,
            )
            # The norm is for the heads only: the next layer continues from the un-normed state.
            outputs.append(self.decoder_norm(hidden_BQC))
        return outputs

    def _heads(self, hidden_BQC: Tensor, mask_features_BChw: Tensor) -> LayerOutput:
        masks_BQC = self.mask_head(hidden_BQC)
        embeds_BQD = normalize(self.query_head(hidden_BQC).float(), dim=-1)
        # Autocast would take the product, whose errors the scale multiplies, in half precision.
        with torch.autocast(embeds_BQD.device.type, enabled=False):
            void_logits_BQ = LOGIT_SCALE * embeds_BQD @ normalize(self.no_object.float(), dim=0)
        return LayerOutput(
            mask_logits_BQhw=torch.einsum("bqc,bchw->bqhw", masks_BQC, mask_features_BChw).float(),
            query_embeds_BQD=embeds_BQD,
            void_logits_BQ=void_logits_BQ,
        )

    def _initialise(self) -> None:
        """Draw the first weights as the reference does; those not named are PyTorch's own."""
        for module in (*self.pixel_decoder.modules(), self.input_projection):
            if isinstance(module, nn.Conv2d):  # c2_xavier_fill of fvcore
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, module in self.decoder_layers.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            is_joint = name.endswith(("q_proj", "k_proj", "v_proj"))
            # There q, k and v are one matrix, of three times as many outputs.
            nn.init.xavier_uniform_(module.weight, gain=0.5**0.5 if is_joint else 1.0)
            if is_joint or name.endswith("o_proj"):
                nn.init.zeros_(module.bias)

    @classmethod
    def load(cls, directory: str | Path) -> MaskFormer:
        """Return the model of a directory in evaluation mode, in fp32.

        Raises ModelError for a missing or truncated file, and one that names every missing,
        unexpected and misshapen weight.
        """
        model = cls(load_config(directory))
        load_weights(model, directory)
        return model.eval()

    def save(self, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors`, floats stored as `dtype`."""
        save_network(self, self.config, directory, dtype)


def load_config(directory: str | Path) -> MaskFormerConfig:
    """Read a directory's `config.json` without building the model; raises ModelError."""
    return read_config(directory, MaskFormerConfig)


def build_backbone(config: BackboneConfig) -> tuple[nn.Module, list[int]]:
    """Return a module that maps images to four feature maps, finest first, and their widths."""
    if config.kind not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ModelError(f"there is no kind of backbone {config.kind!r}; there are {known}")
    return BACKBONES[config.kind](config)


def pixel_decoder(config: NetworkConfig, widths: Sequence[int]) -> nn.Module:
    """Return the FPN that makes the features of every pixel at stride 4 (spec 1.2)."""
    decoder: nn.Module = MaskFormerPixelDecoder(
        in_features=widths[-1],
        lateral_widths=widths[:-1],
        feature_size=config.fpn_channels,
        mask_feature_size=config.mask_channels,
    )
    return decoder


def _timm_backbone(config: BackboneConfig) -> tuple[nn.Module, list[int]]:
    # Only a network that is built tells its strides. That one takes no random numbers from a seed.
    with torch.random.fork_rng(devices=[]):
        levels = _timm_features(config).feature_info.info
    strides = [level["reduction"] for level in levels]
    first = strides.index(4) if 4 in strides else len(strides)
    indices = tuple(range(len(strides))[first : first + 4])
    if len(indices) < 4:
        raise ModelError(
            f"backbone {config.name!r} has feature maps of strides "
            f"{', '.join(map(str, strides))}; there must be one of stride 4 and three behind it"
        )
    backbone = _timm_features(config, out_indices=indices)
    if getattr(backbone, "output_fmt", "NCHW") != "NCHW":
        raise ModelError(
            f"backbone {config.name!r} has feature maps whose channels come last; they must come "
            "first, as NCHW (for a Swin there is the kind 'swin')"
        )
    return backbone, list(backbone.feature_info.channels())


def _timm_features(config: BackboneConfig, **settings: Any) -> Any:
    """Return a network of timm that gives feature maps, without weights."""
    import timm

    try:
        return timm.create_model(
            config.name, pretrained=False, features_only=True, **settings, **config.options
        )
    except Exception as error:  # networks raise many types where a name or an option is wrong
        near = difflib.get_close_matches(config.name, timm.list_models(), cutoff=0.3)
        hint = "" if timm.is_model(config.name) else f"; it has {', '.join(near)} and others"
        raise ModelError(
            f"timm cannot build backbone {config.name!r} with options {config.options}: "
            f"{error}{hint if near else ''}"
        ) from None


def _resnet_backbone(config: BackboneConfig) -> tuple[nn.Module, list[int]]:
    from pipeline.models.resnet import resnet_backbone

    return resnet_backbone(config)


def _swin_backbone(config: BackboneConfig) -> tuple[nn.Module, list[int]]:
    from pipeline.models.swin import swin_backbone

    return swin_backbone(config)


BACKBONES: Mapping[str, Callable[[BackboneConfig], tuple[nn.Module, list[int]]]] = {
    "timm": _timm_backbone,
    "resnet": _resnet_backbone,
    "swin": _swin_backbone,
}


def _layer_config(config: MaskFormerConfig) -> MaskFormerDetrConfig:
    """Return the settings that transformers' decoder layer reads."""
    layer_config = MaskFormerDetrConfig(
        d_model=config.hidden_channels,
        decoder_attention_heads=config.heads,
        decoder_ffn_dim=config.feedforward_channels,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        activation_dropout=config.dropout,
        activation_function="relu",
    )
    layer_config._attn_implementation = "sdpa"  # unset in layers that are built alone
    return layer_config
