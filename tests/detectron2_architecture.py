"""A detectron2 architecture as another project would bring it: registered when it is imported.

The left and the right half of the image are the two classes, and one convolution decides how much
of the border moves. Imported only by tests that need detectron2.
"""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn


def add_halves_config(cfg):
    """Add the settings of the architecture."""
    cfg.MODEL.HALVES = CfgNode()
    cfg.MODEL.HALVES.CHANNELS = 4


@META_ARCH_REGISTRY.register()
class Halves(nn.Module):
    """Returns `sem_seg` scores of two classes."""

    def __init__(self, cfg):
        super().__init__()
        self.features = nn.Conv2d(3, cfg.MODEL.HALVES.CHANNELS, 1)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN)[:, None, None], False)

    def forward(self, batched_inputs):
        """Take and return what detectron2 documents for a meta architecture."""
        return [{"sem_seg": self._scores(image["image"])} for image in batched_inputs]

    def _scores(self, pixels_3HW):
        strength_HW = self.features((pixels_3HW - self.pixel_mean)[None])[0].mean(dim=0)
        side_W = torch.linspace(-1e3, 1e3, pixels_3HW.shape[2])
        return torch.stack([strength_HW - side_W, side_W - strength_HW])
