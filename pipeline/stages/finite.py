"""What a network returns must be numbers; apart from rows.py, which is light."""

from collections.abc import Iterable

import torch
from torch import Tensor


def check_finite(what: str, results: Iterable[Tensor | None]) -> None:
    """Raise FloatingPointError where any number of some results is NaN or infinite.

    Such images would otherwise be labelled nowhere, and no one would know why. On a GPU it is one
    question for all of them.
    """
    # A sum is NaN or infinite if any part is; those of half precision could become so on their own.
    sums = [values.sum(dtype=torch.float32) for values in results if values is not None]
    if sums and not torch.stack(sums).isfinite().all():
        raise FloatingPointError(
            f"{what} are not finite numbers: its weights are broken, or fp16 does not reach far "
            "enough (bf16 and fp32 do)"
        )
