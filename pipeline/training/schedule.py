"""What the training loops share: the learning-rate curve and the optimiser's groups."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the learning-rate factor in [0, 1]: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimiser groups: matrices and kernels decay; biases, norms and scalars do not."""
    trained = [value for value in model.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim < 2], "weight_decay": 0.0},
    ]
