"""The MaskFormer as a proposer: RGB images in, proposals out (spec 2.2, 2.3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models import Proposals, ProposerCard, ProposerEntry
from pipeline.models.device import per_channel, send
from pipeline.models.embedded import EMBEDDED_PROPOSER
from pipeline.models.maskformer import MaskFormer, NetworkConfig, load_config
from pipeline.models.passes import is_reentrant
from pipeline.models.weights import sha256_of
from pipeline.resize import Size, padded_size


class MaskFormerProposer:
    """One forward pass for a batch of images that share a padded size."""

    def __init__(self, model: MaskFormer) -> None:
        self._model = model.eval().requires_grad_(False)
        self._device = next(model.parameters()).device

    def lower(self, dtype: torch.dtype) -> None:
        """Prepare the network for half precision."""
        from pipeline.models.half_precision import lower

        lower(self._model, dtype)

    def is_reentrant(self) -> bool:
        """Say whether threads may call it side by side."""
        return is_reentrant(self._model)

    @torch.inference_mode()
    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return the proposals of RGB images (H, W, 3); their padded sizes must be equal."""
        output = self._model(padded_batch(images, self._model.config, self._device))
        parts = (output.mask_logits_BQhw, output.query_embeds_BQD, output.void_logits_BQ)
        return [Proposals(*image) for image in zip(*parts, strict=True)]


def padded_batch(
    images: Sequence[NDArray[np.uint8]], config: NetworkConfig, device: torch.device
) -> Tensor:
    """Return the network's input for RGB images; raises ValueError unless one padded size fits."""
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    padded = {padded_size(size, config.size_divisibility) for size in sizes}
    if len(padded) != 1:
        raise ValueError(f"images of one batch must share a padded size, got {sorted(padded)}")
    return network_input(images, config, padded.pop(), device)


def network_input(
    images: Sequence[NDArray[np.uint8]],
    config: NetworkConfig,
    padded: Size,
    device: torch.device,
) -> Tensor:
    """Return RGB images (H, W, 3) normalised and zero-padded to `padded` (B, 3, H, W).

    Padding is at the right and bottom. It comes after normalisation, so that it is exactly 0.
    """
    mean_311, std_311 = (
        per_channel(values, device) for values in (config.pixel_mean, config.pixel_std)
    )
    batch_B3HW = torch.zeros((len(images), 3, *padded), device=device)
    for row_3HW, image_HW3 in zip(batch_B3HW, images, strict=True):
        pixels_3HW = send(image_HW3, device).permute(2, 0, 1)
        _, height, width = pixels_3HW.shape
        row_3HW[:, :height, :width] = (pixels_3HW.float() - mean_311) / std_311
    return batch_B3HW


def _directory(weights: str | None) -> Path:
    return EMBEDDED_PROPOSER if weights is None else Path(weights)


def _describe(weights: str | None) -> ProposerCard:
    directory = _directory(weights)
    config = load_config(directory)
    return ProposerCard(
        short_edge=config.short_edge,
        long_edge=config.long_edge,
        divisor=config.size_divisibility,
        embedding_dim=config.embedding_dim,
        weights_sha256=sha256_of(directory),
        licence=config.licence,
        seen_classes=config.seen_classes,
    )


def _load(weights: str | None, device: str) -> MaskFormerProposer:
    return MaskFormerProposer(MaskFormer.load(_directory(weights)).to(device))


MASKFORMER: Final = ProposerEntry(
    summary="MaskFormer with a text-aligned query head (the paper's); embedded tiny one by default",
    describe=_describe,
    load=_load,
    lower=MaskFormerProposer.lower,
    is_reentrant=MaskFormerProposer.is_reentrant,
)
