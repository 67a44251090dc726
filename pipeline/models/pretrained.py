"""Checkpoints in the layout of transformers' `save_pretrained`: found, described, loaded whole.

A checkpoint is a local directory, or a Hugging Face id `ORG/NAME`, or `ORG/NAME@REVISION`. An id
without a revision is whatever the hub holds when each process asks: a run of many workers should
name one. Every failure is one ModelError; weights are read from safetensors only, and a model of
which any part would be left at its random start is refused.
"""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from huggingface_hub import ModelCard, hf_hub_download
from numpy.typing import NDArray
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import logging as transformers_logging

from pipeline.models.weights import sha256_of
from schemas.errors import ModelError

logger = logging.getLogger(__name__)

UNKNOWN_LICENCE: Final = "unknown (see the model card)"

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_NAMED: Final = 5  # keys named in one message
_TRAINING_ONLY: Final = "criterion."  # buffers of the loss; inference reads none of them


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is: `name` is a directory or an id of the hub."""

    name: str
    revision: str | None = None

    @property
    def directory(self) -> Path | None:
        """The local directory, or None for one of the hub."""
        return Path(self.name) if Path(self.name).is_dir() else None

    @property
    def arguments(self) -> dict[str, Any]:
        """What every `from_pretrained` is called with."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"pretrained_model_name_or_path": self.name, "trust_remote_code": False, **revision}


def find_checkpoint(weights: str | None, proposer: str) -> Checkpoint:
    """Return the checkpoint that `weights` names; raises ModelError where there can be none."""
    if weights is None:
        raise ModelError(
            f"proposer {proposer} needs weights: set proposer_weights to a directory written by "
            "save_pretrained or to a Hugging Face id (ORG/NAME or ORG/NAME@REVISION)"
        )
    if Path(weights).is_dir():
        return Checkpoint(weights)
    if Path(weights).exists() or not _HUB_ID.fullmatch(weights):
        raise ModelError(f"{weights} is neither a directory nor a Hugging Face id (ORG/NAME)")
    name, _, revision = weights.partition("@")
    return Checkpoint(name, revision or None)


def load_config(checkpoint: Checkpoint, proposer: str, model_types: Collection[str]) -> Any:
    """Return the checkpoint's configuration; its model type must be one of `model_types`."""
    with _one_line(checkpoint, "configuration"):
        config = AutoConfig.from_pretrained(**checkpoint.arguments)
    if config.model_type not in model_types:
        raise ModelError(
            f"{checkpoint.name} holds a {config.model_type!r} model; "
            f"proposer {proposer} takes {', '.join(sorted(model_types))}"
        )
    return config


def load_image_processor(checkpoint: Checkpoint, **overrides: Any) -> Any:
    """Return the checkpoint's image processor (sizes, mean, standard deviation)."""
    with _one_line(checkpoint, "image processor"):
        return AutoImageProcessor.from_pretrained(**checkpoint.arguments, **overrides)


def preprocess(processor: Any, images: Sequence[NDArray[np.uint8]], **settings: Any) -> Any:
    """Return what `processor` makes of RGB images (H, W, 3), as tensors.

    Without the named format, an image three pixels high would be taken for one of three channels.
    """
    writable = [image.copy() for image in images]  # those of a stage are not
    return processor(
        images=writable, input_data_format="channels_last", return_tensors="pt", **settings
    )


def load_part(checkpoint: Checkpoint, factory: Any, what: str) -> Any:
    """Return `factory.from_pretrained` of the checkpoint."""
    with _one_line(checkpoint, what):
        return factory.from_pretrained(**checkpoint.arguments)


def load_model(checkpoint: Checkpoint, factory: Any, device: str) -> Any:
    """Return the model in float32 for inference; raises ModelError where any weight is missing.

    What the file holds beyond the model is named in a warning.
    """
    with _one_line(checkpoint, "weights"), _quiet():
        model, info = factory.from_pretrained(
            **checkpoint.arguments,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # told below, with both sizes
            output_loading_info=True,
        )
    missing = [name for name in info["missing_keys"] if not name.startswith(_TRAINING_ONLY)]
    sizes = [
        f"{name} of {tuple(found)} for {tuple(wanted)}"
        for name, found, wanted in info["mismatched_keys"]
    ]
    odd = [*missing, *sizes, *info["error_msgs"]]
    unexpected = sorted(info["unexpected_keys"])
    if odd:
        raise ModelError(
            f"{checkpoint.name} is not a whole {type(model).__name__}: weights missing or of "
            f"another size: {_some(odd)}; weights without a place: {_some(unexpected)}"
        )
    if unexpected:
        logger.warning("%s: unused weights: %s", checkpoint.name, _some(unexpected))
    return model.to(device).eval().requires_grad_(False)


def identity_of(checkpoint: Checkpoint) -> str:
    """Return what names the weights: a directory's SHA-256, or a hub id at its commit."""
    directory = checkpoint.directory
    if directory is not None:
        return sha256_of(directory)
    with _one_line(checkpoint, "commit"):
        file = hf_hub_download(checkpoint.name, "config.json", revision=checkpoint.revision)
    commit = Path(file).parent.name  # the cache holds snapshots/COMMIT/config.json
    return f"{checkpoint.name}@{commit}"


def licence_of(checkpoint: Checkpoint) -> str:
    """Return the licence that the model card (README.md) states, if there is one."""
    directory = checkpoint.directory
    try:
        card = ModelCard.load(directory / "README.md" if directory else checkpoint.name)
    except Exception:  # a card is optional, and the hub client raises many types
        return UNKNOWN_LICENCE
    stated = card.data.get("license")
    if stated == "other":
        stated = card.data.get("license_name") or stated
    return str(stated) if stated else UNKNOWN_LICENCE


@contextmanager
def _one_line(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers, the hub client and safetensors raise many types
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise ModelError(
            f"cannot read the {what} of {checkpoint.name}: {type(error).__name__}: {reason}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's progress bar and table of keys: what they tell is told here."""
    level, bar = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_NAMED])
    return f"{len(names)} ({listed}{', ...' if len(names) > _NAMED else ''})" if names else "none"
