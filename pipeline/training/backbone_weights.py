"""Weights for a backbone to start from, such as a classifier's of ImageNet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from pipeline.models.checkpoint_file import read_weights
from pipeline.models.checkpoints import their_name
from schemas.errors import ModelError

# torchvision's names of a ResNet to ours; a name of ours is left as it is. Those of detectron2 are
# in the authors' checkpoints too.
_RENAMES: Final = (
    (re.compile(r"^(conv1|bn1)\."), r"stem.\1."),
    (re.compile(r"^layer1\."), "res2."),
    (re.compile(r"^layer2\."), "res3."),
    (re.compile(r"^layer3\."), "res4."),
    (re.compile(r"^layer4\."), "res5."),
)
# The classifier's own layers, and counters.
_UNUSED: Final = re.compile(r"^((stem\.)?fc|head|classifier)\.|num_batches_tracked$")
_PREFIX: Final = "backbone."
_NAMED: Final = 8


def load_backbone(backbone: nn.Module, file: Path) -> None:
    """Load a file of weights under the backbone's own names, detectron2's or torchvision's.

    Names may begin with `backbone.`, and the classifier's last layer is left out. Raises ModelError
    that names what is missing, unexpected or misshapen.
    """
    expected = backbone.state_dict()
    ours = {their_name(f"{_PREFIX}{name}").removeprefix(_PREFIX): name for name in expected}
    found: dict[str, Tensor] = {}
    for full_name, value in read_weights(file).weights.items():
        name = full_name.removeprefix(_PREFIX)
        name = ours.get(name, name)
        if name not in expected:
            for pattern, replacement in _RENAMES:
                name = pattern.sub(replacement, name)
        if not (_UNUSED.search(name) and name not in expected):
            found[name] = value.float() if value.is_floating_point() else value
    wanted = {name for name in expected if not name.endswith("num_batches_tracked")}
    problems = [f"missing {name}" for name in sorted(wanted - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ModelError(f"{file} does not fit the backbone: {'; '.join(problems[:_NAMED])}{more}")
    backbone.load_state_dict(found, strict=False)  # only counters can be missing
