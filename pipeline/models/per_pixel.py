"""The paper's per-pixel baseline: an FCN whose pixels, not masks, meet the text (spec 1.1, B-11).

It proposes no regions. Its embeddings travel at stride 4 as the mask logits of others do, and
`pipeline/pixels.py` makes class scores of them.

Dimension key: B images, D embedding, C mask features, K class names, H W padded pixels, h w grid at
stride 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.models import ProposerCard, ProposerEntry
from pipeline.models.maskformer import LOGIT_SCALE, NetworkConfig, build_backbone, pixel_decoder
from pipeline.models.maskformer_proposer import padded_batch
from pipeline.models.model_directory import load_weights, read_config, save_network
from pipeline.models.passes import is_reentrant
from pipeline.models.weights import sha256_of
from schemas.errors import ModelError


class PerPixelConfig(NetworkConfig):
    """Structure and preprocessing of one per-pixel network; the defaults are the paper's."""

    architecture: Literal["per-pixel"] = "per-pixel"  # so that no MaskFormer is taken for one
    # The reference asks its backbone, and detectron2's ResNet wants no padding at all.
    size_divisibility: int = 1


class PerPixel(nn.Module):
    """Backbone, FPN pixel decoder, and one 1x1 convolution to CLIP's dimensions."""

    def __init__(self, config: PerPixelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, widths = build_backbone(config.backbone)
        self.pixel_decoder = pixel_decoder(config, widths)
        self.embed = nn.Conv2d(config.mask_channels, config.embedding_dim, kernel_size=1)

    def forward(self, pixel_values_B3HW: Tensor) -> Tensor:
        """Return embeddings (B, D, h, w) of normalised images, as they are before any norm.

        The grid covers the image: h and w are a quarter of H and W, rounded up.
        """
        features = self.pixel_decoder(self.backbone(pixel_values_B3HW)).last_hidden_state
        embeds_BDhw: Tensor = self.embed(features).float()
        return embeds_BDhw

    @classmethod
    def load(cls, directory: str | Path) -> PerPixel:
        """Return the network of a directory in evaluation mode, in fp32.

        Raises ModelError for a missing or truncated file, and one that names every missing,
        unexpected and misshapen weight.
        """
        network = cls(read_config(directory, PerPixelConfig))
        load_weights(network, directory)
        return network.eval()

    def save(self, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors`, floats stored as `dtype`."""
        save_network(self, self.config, directory, dtype)


def class_logits(embeds_BDhw: Tensor, text_KD: Tensor) -> Tensor:
    """Return scaled cosines (B, K, h, w) with unit text vectors, for training.

    As the reference trains: cosines at stride 4, resized to the truth for the cross-entropy that
    ignores 255. At inference the embeddings are resized instead.
    """
    return LOGIT_SCALE * torch.einsum("bdhw,kd->bkhw", normalize(embeds_BDhw, dim=1), text_KD)


class PixelEmbeddings:
    """One forward pass for a batch of images that share a padded size."""

    def __init__(self, network: PerPixel) -> None:
        self._network = network.eval().requires_grad_(False)
        self._device = next(network.parameters()).device

    def lower(self, dtype: torch.dtype) -> None:
        """Prepare the network for half precision."""
        from pipeline.models.half_precision import lower

        lower(self._network, dtype)

    def is_reentrant(self) -> bool:
        """Say whether threads may call it side by side."""
        return is_reentrant(self._network)

    @torch.inference_mode()
    def embed_pixels(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Return embeddings (D, h, w) of RGB images (H, W, 3) of one padded size."""
        batch_B3HW = padded_batch(images, self._network.config, self._device)
        return list(self._network(batch_B3HW))


def _directory(weights: str | None) -> Path:
    if weights is None:
        raise ModelError(
            "proposer 'per-pixel' needs proposer_weights: a directory of its network, as "
            "`weights convert` writes it"
        )
    return Path(weights)


def _describe(weights: str | None) -> ProposerCard:
    directory = _directory(weights)
    config = read_config(directory, PerPixelConfig)
    return ProposerCard(
        short_edge=config.short_edge,
        long_edge=config.long_edge,
        divisor=config.size_divisibility,
        embedding_dim=config.embedding_dim,
        weights_sha256=sha256_of(directory),
        licence=config.licence,
        seen_classes=config.seen_classes,
        proposes_masks=False,
    )


def _load(weights: str | None, device: str) -> PixelEmbeddings:
    return PixelEmbeddings(PerPixel.load(_directory(weights)).to(device))


PER_PIXEL: Final = ProposerEntry(
    summary="no proposals: the paper's FCN baseline, every pixel compared with the text "
    "(needs weights)",
    describe=_describe,
    load=_load,
    lower=PixelEmbeddings.lower,
    is_reentrant=PixelEmbeddings.is_reentrant,
)
