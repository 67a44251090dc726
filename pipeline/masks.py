"""Mask logits as they travel between the pools, and the soft masks made from them (spec 2.3).

Dimension key: Q proposals, h w low-resolution grid over the padded image, H W image.
"""

from typing import Any, Final, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.resize import Size

Precision = Literal["float32", "float16", "uint8"]

# uint8 covers logits in [-8, 8]: sigmoid is within 0.0004 of 0 and 1 at the ends. Every
# logit keeps its sign (128 is exactly 0), so that no cell crosses a threshold of one half.
_LOGIT_RANGE: Final = 8.0
_STEPS_PER_LOGIT: Final = 127 / _LOGIT_RANGE
_ZERO_CODE: Final = 128


def pack_logits(mask_logits_Qhw: Tensor, precision: Precision) -> NDArray[Any]:
    """Return mask logits as an array of `precision`; uint8 clips them to [-8, 8]."""
    logits = mask_logits_Qhw.detach().float().cpu()
    if precision == "uint8":
        steps = (logits.abs().clamp_max(_LOGIT_RANGE) * _STEPS_PER_LOGIT).round().clamp_min(1)
        return (logits.sign() * steps + _ZERO_CODE).to(torch.uint8).numpy()
    return logits.numpy().astype(precision)


def unpack_logits(packed_Qhw: NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """Return float32 mask logits from what `pack_logits` returned."""
    packed = torch.from_numpy(packed_Qhw).to(device)
    if packed.dtype == torch.uint8:
        return (packed.float() - _ZERO_CODE) / _STEPS_PER_LOGIT
    return packed.float()


def mask_probs(mask_logits_Qhw: Tensor, padded: Size, size: Size) -> Tensor:
    """Return soft masks (Q, H, W) in (0, 1): upsample to `padded`, crop to `size`, then sigmoid."""
    height, width = size
    if not len(mask_logits_Qhw):
        return mask_logits_Qhw.new_zeros((0, height, width))
    upsampled = interpolate(
        mask_logits_Qhw[None], size=padded, mode="bilinear", align_corners=False
    )[0]
    return upsampled[:, :height, :width].sigmoid()
