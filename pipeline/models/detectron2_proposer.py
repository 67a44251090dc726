"""Any detectron2 configuration with a mask output as a class-agnostic proposer.

Instance heads, semantic heads, panoptic heads, and architectures of others, which a module
registers when it is imported. detectron2 is optional and is imported at first use. An image goes
through the network as detectron2's own predictor sends it, together only with images of exactly
its size, so that its masks do not depend on the batch. Dimension key: H W pixels.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from pipeline.models import Proposals, Proposer, ProposerCard, ProposerEntry
from pipeline.models.checkpoint_file import WeightsFile, read_weights
from pipeline.models.detectron2_files import CONFIG_FILE, Detectron2Files
from pipeline.models.detectron2_masks import proposal_logits
from pipeline.models.partition import DIVISOR
from pipeline.models.pretrained import Checkpoint, licence_of
from pipeline.resize import Size
from schemas.errors import ModelError

_ABSENT: Final = (
    "proposer detectron2 needs detectron2, which is not installed: build it from source "
    "(facebookresearch/detectron2 on GitHub, as its INSTALL.md says) for the PyTorch that is here"
)
_CONFIG_FUNCTION: Final = re.compile(r"add_\w*config")  # the name is a custom of its projects
_BOXES_ONLY: Final = ("RetinaNet", "FCOS", "ProposalNetwork")

# Where the configuration asks for no resizing.
_SHORT_EDGE: Final = 640
_LONG_EDGE: Final = 2560

_NAMED: Final = 5  # weights named in one message
# Made from the configuration, or read by nothing at inference; older files hold them.
_NOT_WEIGHTS: Final = re.compile(
    r"pixel_(mean|std)|criterion\..*|.*\.num_batches_tracked|.*anchor_generator\.cell_anchors.*"
)

Image = NDArray[np.uint8]


class Detectron2Proposer:
    """A detectron2 model; `is_bgr` is the order of colours that it was trained on."""

    def __init__(self, model: Any, *, is_bgr: bool) -> None:
        self._model = model
        self._is_bgr = is_bgr

    @torch.inference_mode()
    def propose(self, images: Sequence[Image]) -> list[Proposals]:
        """Return up to 100 proposals per RGB image (H, W, 3)."""
        by_size: dict[Size, list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault((image.shape[0], image.shape[1]), []).append(index)
        proposals: dict[int, Proposals] = {}
        for size, indices in by_size.items():
            outputs = self._model([self._input(images[index]) for index in indices])
            for index, output in zip(indices, outputs, strict=True):
                proposals[index] = Proposals(proposal_logits(output, size))
        return [proposals[index] for index in range(len(images))]

    def _input(self, image_HW3: Image) -> dict[str, Any]:
        ordered_HW3 = image_HW3[:, :, ::-1] if self._is_bgr else image_HW3
        pixels_3HW = torch.from_numpy(ordered_HW3.astype(np.float32).transpose(2, 0, 1).copy())
        return {"image": pixels_3HW, "height": image_HW3.shape[0], "width": image_HW3.shape[1]}


@dataclass(frozen=True)
class _Detectron2:
    """The entry of the registry, with what is to be imported first."""

    modules: tuple[str, ...] = ()

    def describe(self, weights: str | None) -> ProposerCard:
        files = Detectron2Files.find(weights)
        config = self._config(files)
        return ProposerCard(
            short_edge=config.INPUT.MIN_SIZE_TEST or _SHORT_EDGE,
            long_edge=config.INPUT.MAX_SIZE_TEST if config.INPUT.MIN_SIZE_TEST else _LONG_EDGE,
            divisor=DIVISOR,
            embedding_dim=None,
            weights_sha256=files.identity(self.modules),
            licence=licence_of(Checkpoint(str(files.directory))),
        )

    def load(self, weights: str | None, device: str) -> Proposer:
        files = Detectron2Files.find(weights)
        config = self._config(files)
        config.MODEL.DEVICE = device
        config.MODEL.WEIGHTS = (
            ""  # those of the file take the place of any that training began with
        )
        try:
            model = _import("detectron2.modeling").build_model(config)
        except Exception as error:  # any: the architecture may be anyone's
            raise ModelError(
                f"cannot build the model of {files.directory}: {_why(error)}"
            ) from error
        fill(model, read_weights(files.weights))
        is_bgr = config.INPUT.FORMAT == "BGR"
        return Detectron2Proposer(model.eval().requires_grad_(False), is_bgr=is_bgr)

    @property
    def entry(self) -> ProposerEntry:
        return ProposerEntry(
            summary="any detectron2 config with instance, semantic or panoptic masks "
            "(needs weights, and detectron2)",
            describe=self.describe,
            load=self.load,
            with_modules=lambda modules: _Detectron2(modules).entry,
        )

    def _config(self, files: Detectron2Files) -> Any:
        """Return the CfgNode: detectron2's defaults, those of the modules, then the file's."""
        config = _import("detectron2.config").get_cfg()
        for name in self.modules:
            _extend(config, name)
        _merge(config, files)
        _check(config, files)
        return config


def _import(name: str) -> Any:
    """Import a part of detectron2; raises ModelError where it is absent or does not work here."""
    try:
        import_module("detectron2")
        return import_module(name)
    except Exception as error:  # a build for another PyTorch fails in many ways
        if isinstance(error, ModuleNotFoundError) and error.name == "detectron2":
            raise ModelError(_ABSENT) from None
        raise ModelError(
            f"detectron2 cannot be imported beside torch {torch.__version__}: {_why(error)}"
        ) from error


def _extend(config: Any, name: str) -> None:
    """Import a module of the user's choice and apply its `add_..._config` functions."""
    try:
        module = import_module(name)
        for attribute, function in list(vars(module).items()):
            if _CONFIG_FUNCTION.fullmatch(attribute) and callable(function):
                function(config)
    except Exception as error:  # any: it is the user's code
        raise ModelError(f"proposer_modules: {name} cannot be used: {_why(error)}") from error


def _merge(config: Any, files: Detectron2Files) -> None:
    # By a file, because detectron2 upgrades old configurations only where it reads one.
    with TemporaryDirectory() as folder:
        plain = Path(folder) / CONFIG_FILE
        plain.write_text(files.config_text, encoding="utf-8")
        try:
            config.merge_from_file(str(plain), allow_unsafe=False)
        except Exception as error:  # KeyError, ValueError, AssertionError and more of yacs
            raise ModelError(
                f"{files.directory / CONFIG_FILE} does not fit detectron2: {_why(error)}; settings "
                "of a project need its module in proposer_modules"
            ) from error


def _check(config: Any, files: Detectron2Files) -> None:
    path, name = files.directory / CONFIG_FILE, config.MODEL.META_ARCHITECTURE
    registry = _import("detectron2.modeling").META_ARCH_REGISTRY
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        raise ModelError(
            f"{path}: there is no architecture {name!r}; there are {known}. One of a project is "
            "registered by its module, to be named in proposer_modules"
        )
    if name in _BOXES_ONLY or (name == "GeneralizedRCNN" and not config.MODEL.MASK_ON):
        raise ModelError(f"{path}: a {name} without masks gives boxes; a proposer needs masks")
    if config.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ModelError(f"{path}: INPUT.FORMAT is {config.INPUT.FORMAT!r}; BGR and RGB are known")


def fill(model: Any, file: WeightsFile) -> None:
    """Give a detectron2 model the weights of a file; its own names only, none are guessed.

    Raises ModelError that names every weight missing, of another shape, or without a place.
    """
    weights = OrderedDict(file.weights)
    versions = {} if file.versions is None else dict(file.versions)
    weights._metadata = versions  # type: ignore[attr-defined]  # where PyTorch looks for them
    consume_prefix_in_state_dict_if_present(weights, "module.")
    _expect_statistics(model, weights)
    try:
        odd = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # sizes differ; the message names each
        raise ModelError(f"{file.path} does not fit the model: {_why(error)}") from None
    missing = [name for name in odd.missing_keys if not _NOT_WEIGHTS.fullmatch(name)]
    unexpected = [name for name in odd.unexpected_keys if not _NOT_WEIGHTS.fullmatch(name)]
    if missing or unexpected:
        raise ModelError(
            f"{file.path} does not fit the model: weights missing: {_some(missing)}; weights "
            f"without a place: {_some(unexpected)}"
        )
    _compare_normalisation(model, file)


def _expect_statistics(model: Any, weights: Any) -> None:
    """Let a frozen batch norm miss its statistics where the file has any.

    Files converted from Caffe2 have none at all, and detectron2 then takes 0 and 1. Without module
    versions it would do so for a single one that is lost.
    """
    if not any(name.endswith("running_var") for name in weights):
        return
    frozen = _import("detectron2.layers").FrozenBatchNorm2d
    for name, module in model.named_modules():
        if isinstance(module, frozen):
            weights._metadata.setdefault(name, {"version": module._version})


def _compare_normalisation(model: Any, file: WeightsFile) -> None:
    for name in ("pixel_mean", "pixel_std"):
        used, stored = getattr(model, name, None), file.weights.get(name)
        if used is None or stored is None:
            continue
        if used.flatten().tolist() != stored.to(used.dtype).flatten().tolist():
            raise ModelError(
                f"{file.path} was trained with {name} {stored.flatten().tolist()}, "
                f"{CONFIG_FILE} says {used.flatten().tolist()}"
            )


def _why(error: Exception) -> str:
    reason = " ".join(str(error).split())[:500] or "no reason given"
    return f"{type(error).__name__}: {reason}"


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_NAMED])
    return f"{len(names)} ({listed}{', ...' if len(names) > _NAMED else ''})" if names else "none"


DETECTRON2: Final = _Detectron2().entry
