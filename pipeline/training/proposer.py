"""Training of the tiny MaskFormer on scenes of seen classes (spec 3.1).

Dimension key: B images, H W canvas pixels, M masks of one image, K seen classes, Q queries,
T templates, D embedding, 3 RGB.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, normalize

from pipeline.models.maskformer import LOGIT_SCALE, MaskFormer, MaskFormerConfig
from pipeline.synthetic import Scene
from pipeline.training.schedule import parameter_groups, warm_cosine
from pipeline.training.set_loss import LossSettings, set_losses
from pipeline.training.targets import Targets, class_masks

logger = logging.getLogger(__name__)

PADDING: Final = 255  # label of canvas pixels outside the picture: part of no mask
LOSS: Final = LossSettings(matching_targets="area")  # targets are shares of cells, so matching too


@dataclass(frozen=True)
class ProposerTraining:
    """Settings of the MaskFormer training."""

    steps: int = 3000
    batch_size: int = 12
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup: int = 150
    max_norm: float = 1.0
    seed: int = 0


def train_proposer(
    scenes: Sequence[Scene],
    config: MaskFormerConfig,
    text_TKD: Tensor,
    seen_indices: Sequence[int],
    settings: ProposerTraining,
    start: MaskFormer | None = None,
) -> MaskFormer:
    """Train from nothing, or from `start`.

    `text_TKD` holds the seen classes' unit text vectors per template; each step draws one template,
    so that the query head fits any way of asking.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 3])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = (start or MaskFormer(config)).to(device).to(memory_format=torch.channels_last).train()
    guide = CellGuide(model).to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(nn.ModuleList([model, guide]), settings.weight_decay)
    )
    position_of = np.full(256, -1)
    position_of[list(seen_indices)] = np.arange(len(seen_indices))
    text_TKD = text_TKD.to(device)
    started, means = time.monotonic(), np.zeros(4)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm_cosine(
                step, settings.steps, settings.warmup
            )
        pixels_B3HW, targets, positions_BHW = make_batch(
            rng, scenes, config, position_of, settings.batch_size
        )
        with torch.autocast(device.type, torch.bfloat16):
            pixels_B3HW = pixels_B3HW.to(device, memory_format=torch.channels_last)
            output = model(pixels_B3HW)
        text_KD = text_TKD[int(rng.integers(len(text_TKD)))]
        losses_L3 = set_losses((*output.aux, output), text_KD, targets.to(device), LOSS)
        guided = guide.loss(text_KD, positions_BHW.to(device))
        parts = torch.cat([losses_L3.mean(0) * losses_L3.new_tensor(LOSS.weights), guided[None]])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(parts.sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm)
        optimizer.step()
        decay = 0.98 if step else 0.0
        means = decay * means + (1 - decay) * parts.detach().cpu().numpy()
        if step % 100 == 99:
            logger.info(
                "proposer step %d class %.3f focal %.3f dice %.3f cells %.3f %.0f s",
                step + 1,
                *means,
                time.monotonic() - started,
            )
    guide.release()
    model.cpu().eval()
    return model


class CellGuide(nn.Module):
    """A second task, in training only: name the class at every cell the decoder attends to.

    The query head hears from a cell only once a query attends to it, so classes would be learned
    long after masks; with the guide the cells say what they show from the start.
    """

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        config = model.config
        self.embed = nn.Conv2d(config.hidden_channels, config.embedding_dim, kernel_size=1)
        self._cells_BChw = torch.empty(0)
        self._hook = model.input_projection.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: object, cells_BChw: Tensor) -> None:
        self._cells_BChw = cells_BChw

    def release(self) -> None:
        """Stop listening to the model."""
        self._hook.remove()

    def loss(self, text_KD: Tensor, positions_BHW: Tensor) -> Tensor:
        """Return the cross-entropy of the cells of the last forward pass, each by its centre."""
        embeds_BDhw = normalize(self.embed(self._cells_BChw.float()), dim=1)
        logits_BKhw = LOGIT_SCALE * torch.einsum("bdhw,kd->bkhw", embeds_BDhw, text_KD)
        stride = positions_BHW.shape[-1] // logits_BKhw.shape[-1]
        wanted_Bhw = positions_BHW[:, stride // 2 :: stride, stride // 2 :: stride]
        return cross_entropy(logits_BKhw, wanted_Bhw, ignore_index=-1)


def make_batch(
    rng: np.random.Generator,
    scenes: Sequence[Scene],
    config: MaskFormerConfig,
    position_of: NDArray[np.int64],
    batch_size: int,
) -> tuple[Tensor, Targets, Tensor]:
    """Return normalised pictures (B, 3, H, W) on a canvas of one random shape, and their truth.

    `position_of` maps a label to its position among the seen classes, or -1; the last result holds
    such positions for every pixel (B, H, W).
    """
    canvas = _canvas(rng, config)
    pixels, labels = zip(
        *(
            _view(rng, scenes[int(index)], config, canvas)
            for index in rng.integers(len(scenes), size=batch_size)
        ),
        strict=True,
    )
    positions_BHW = torch.from_numpy(position_of[np.stack(labels)])
    num_classes = int(position_of.max()) + 1
    targets = [_targets(positions_HW, num_classes) for positions_HW in positions_BHW]
    pixels_B3HW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return pixels_B3HW, Targets.of(*zip(*targets, strict=True)), positions_BHW


def _canvas(rng: np.random.Generator, config: MaskFormerConfig) -> tuple[int, int]:
    """Return a padded size as inference meets it: the short edge one way, up to 1.5 the other."""
    step = config.size_divisibility
    short = -(-config.short_edge // step) * step
    long = short + step * int(rng.integers(0, short // (2 * step) + 1))
    return (short, long) if rng.random() < 0.6 else (long, short)


def _view(
    rng: np.random.Generator, scene: Scene, config: MaskFormerConfig, canvas: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a random crop of the resized, perhaps mirrored scene: pixels (H, W, 3), labels."""
    height, width = scene.label_map_HW.shape
    scale = config.short_edge / min(height, width)
    if rng.random() < 0.5:
        scale *= float(rng.uniform(0.85, 1.2))
    size = (round(width * scale), round(height * scale))
    image = np.asarray(Image.fromarray(scene.image_HW3).resize(size, Image.Resampling.BILINEAR))
    label = np.asarray(Image.fromarray(scene.label_map_HW).resize(size, Image.Resampling.NEAREST))
    top, left = (
        int(rng.integers(0, max(0, have - room) + 1))
        for have, room in zip(label.shape, canvas, strict=True)
    )
    window = slice(top, top + canvas[0]), slice(left, left + canvas[1])
    image, label = image[window], label[window]
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    gain = rng.uniform(0.92, 1.08)
    pixels = np.zeros((*canvas, 3), np.float32)
    labels = np.full(canvas, PADDING, np.uint8)
    inside = slice(label.shape[0]), slice(label.shape[1])
    mean, std = (np.asarray(v, np.float32) for v in (config.pixel_mean, config.pixel_std))
    pixels[inside] = (image * np.float32(gain) - mean) / std
    labels[inside] = label
    return pixels, labels


def _targets(positions_HW: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return class positions (M,) and masks (M, H/2, W/2), one mask per class in the picture."""
    canvas = (positions_HW.shape[0], positions_HW.shape[1])
    present_M, masks_MHW = class_masks(positions_HW, num_classes, canvas)
    # Half resolution costs a quarter; averaging keeps where inside a cell the border runs.
    return present_M, avg_pool2d(masks_MHW, 2)
