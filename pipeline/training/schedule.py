"""What the training loops share: learning-rate curves and the optimiser's groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.models.maskformer import MaskFormer

_UNDECAYED = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
_UNDECAYED_NAMES = ("relative_position_bias_table", "position_embeddings")  # of a Swin


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the learning-rate factor in [0, 1]: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def poly(step: int, steps: int, power: float = 0.9, floor: float = 0.0) -> float:
    """Return the learning-rate factor in [0, 1] of the paper: a falling power, never under `floor`.

    Step 0 has factor 1; there is no warm-up.
    """
    return max(floor, math.pow(1 - step / steps, power))


def held_cosine(step: int, steps: int, warmup: int, warmup_factor: float) -> float:
    """Return the learning-rate factor of the paper's prompts: held small, then a cosine to zero.

    The cosine is that of the whole run; the warm-up hides its beginning.
    """
    if step < warmup:
        return warmup_factor
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimiser groups: matrices and kernels decay; biases, norms and scalars do not."""
    trained = [value for value in model.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class PaperOptimiser:
    """The optimiser of the paper's proposer (spec 3.1): AdamW, and gradients clipped as one."""

    learning_rate: float = 1e-4
    backbone_factor: float = 0.1  # on the learning rate
    weight_decay: float = 1e-4
    max_norm: float = 0.01

    def build(self, model: MaskFormer) -> torch.optim.AdamW:
        """Return AdamW over what the model trains; norms, embeddings, positions do not decay."""
        return torch.optim.AdamW(self.groups(model))

    def groups(self, model: MaskFormer) -> list[dict[str, Any]]:
        """Return up to four groups: of the backbone or not, decaying or not."""
        in_backbone = {id(value) for value in model.backbone.parameters()}
        members: dict[tuple[float, float], list[nn.Parameter]] = {}
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                is_undecayed = isinstance(module, _UNDECAYED) or name in _UNDECAYED_NAMES
                decay = 0.0 if is_undecayed else self.weight_decay
                factor = self.backbone_factor if id(value) in in_backbone else 1.0
                if value.requires_grad:
                    members.setdefault((self.learning_rate * factor, decay), []).append(value)
        return [
            {"params": values, "lr": rate, "weight_decay": decay}
            for (rate, decay), values in members.items()
        ]

    def step(self, optimizer: torch.optim.Optimizer) -> float:
        """Do `clipped_step` with the limit of these settings."""
        return clipped_step(optimizer, self.max_norm)


def clipped_step(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Clip the global norm of all gradients, update, and return the norm before clipping.

    Where the norm is not finite nothing is updated.
    """
    values = [value for group in optimizer.param_groups for value in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(values, max_norm))
    if math.isfinite(norm):
        optimizer.step()
    return norm
