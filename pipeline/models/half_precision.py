"""What makes a network fast in half precision, where results need not be equal bit for bit.

Frozen batch norms become part of the convolutions before them, which are laid out channels last, as
convolutions in half precision want them. The arithmetic itself is torch's autocast; it would cast
the weights of convolutions and matrix products again for every batch, so they are kept cast.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.models.resnet import FrozenNorm

# In a bottleneck block of torchvision a norm is told from its name; elsewhere it follows its
# convolution.
_PAIRS_OF_A_BLOCK = tuple((f"conv{number}", f"bn{number}") for number in (1, 2, 3))


def lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Prepare a network in evaluation mode, in place, to compute under autocast to `dtype`."""
    for parent in network.modules():
        for convolution, norm in list(_pairs(parent)):
            _fold(parent, convolution, norm)
    network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)


def _pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of convolutions and of the frozen norms after them."""
    following = itertools.pairwise(parent._modules) if isinstance(parent, nn.Sequential) else ()
    for convolution, norm in {*following, *_PAIRS_OF_A_BLOCK}:
        first, second = parent._modules.get(convolution), parent._modules.get(norm)
        if isinstance(first, nn.Conv2d) and isinstance(second, FrozenNorm):
            yield convolution, norm


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    first, second = parent.get_submodule(convolution), parent.get_submodule(norm)
    assert isinstance(first, nn.Conv2d) and isinstance(second, FrozenNorm)
    first.weight, first.bias = fuse_conv_bn_weights(
        first.weight,
        first.bias,
        second.running_mean,
        second.running_var,
        second.eps,
        second.weight,
        second.bias,
    )
    parent.add_module(norm, nn.Identity())
