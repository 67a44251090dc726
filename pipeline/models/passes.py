"""How many images go through a network at a time.

A GPU wants many. On a CPU memory decides: glibc gives back every piece of more than 32 MiB as soon
as it is free, and memory that is new to a process takes several times as long to fill as what it
has. A network of layers whose results are larger loses up to a fifth of its time
(`tests/bench/passes.py`).
"""

from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.models.device import pick_device
from pipeline.resize import Size

_MOST: Final = 256
_LAYER_BYTES: Final = 24 * 2**20
# Of the widest layers of proposers: 64 channels at stride 2, 256 at stride 4, as fp32.
_BYTES_PER_PIXEL: Final = 64


def images_per_pass(size: Size) -> int:
    """Return how many images of a padded size go through a proposer at a time, here."""
    if pick_device() != "cpu":
        return _MOST
    return max(1, min(_MOST, _LAYER_BYTES // (size[0] * size[1] * _BYTES_PER_PIXEL)))


def crops_per_pass(network: nn.Module, crop_13SS: Tensor) -> int:
    """Return how many crops go through an image tower at a time; on a CPU it tries one."""
    if crop_13SS.device.type != "cpu":
        return _MOST
    return max(1, min(_MOST, _LAYER_BYTES // _widest_layer(network, crop_13SS)))


@torch.inference_mode()
def _widest_layer(network: nn.Module, crop_13SS: Tensor) -> int:
    """Return the bytes of the largest result of any layer for a crop."""
    sizes = [1]

    def note(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.nbytes)

    hooks = [layer.register_forward_hook(note) for layer in network.modules()]
    try:
        network(crop_13SS)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)
