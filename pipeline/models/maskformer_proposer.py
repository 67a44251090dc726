"""The MaskFormer as a proposer: RGB images in, proposals out (spec 2.2, 2.3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models import Proposals, ProposerCard, ProposerEntry
from pipeline.models.embedded import EMBEDDED_PROPOSER
from pipeline.models.maskformer import MaskFormer, NetworkConfig, load_config
from pipeline.models.weights import sha256_of
from pipeline.resize import padded_size


class MaskFormerProposer:
    """One forward pass for a batch of images that share a padded size."""

    def __init__(self, model: MaskFormer) -> None:
        self._model = model.eval().requires_grad_(False)
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return the proposals of RGB images (H, W, 3); their padded sizes must be equal."""
        batch = padded_batch(images, self._model.config, self._device)
        output = self._model(batch)
        parts = (output.mask_logits_BQhw, output.query_embeds_BQD, output.void_logits_BQ)
        return [Proposals(*image) for image in zip(*parts, strict=True)]


def padded_batch(
    images: Sequence[NDArray[np.uint8]], config: NetworkConfig, device: torch.device
) -> Tensor:
    """Return normalised RGB images as one batch (B, 3, H, W), zero-padded on the right and below.

    Raises ValueError unless their padded sizes are equal.
    """
    mean_311 = torch.tensor(config.pixel_mean, device=device)[:, None, None]
    std_311 = torch.tensor(config.pixel_std, device=device)[:, None, None]
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    padded = {padded_size(size, config.size_divisibility) for size in sizes}
    if len(padded) != 1:
        raise ValueError(f"images of one batch must share a padded size, got {sorted(padded)}")
    batch_B3HW = torch.zeros((len(images), 3, *padded.pop()), device=device)
    for index, (image_HW3, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        pixels_3HW = torch.from_numpy(image_HW3.copy()).to(device).permute(2, 0, 1)
        # Padding comes after normalisation, so that it is exactly 0.
        batch_B3HW[index, :, :height, :width] = (pixels_3HW.float() - mean_311) / std_311
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
    )


def _load(weights: str | None, device: str) -> MaskFormerProposer:
    return MaskFormerProposer(MaskFormer.load(_directory(weights)).to(device))


MASKFORMER: Final = ProposerEntry(
    summary="MaskFormer with a text-aligned query head (the paper's); embedded tiny one by default",
    describe=_describe,
    load=_load,
)
