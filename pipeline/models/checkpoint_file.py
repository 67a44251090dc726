"""Weights read from a .pth, .pkl or .safetensors file, executing nothing that the file says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.models.pickled import read_pickle
from pipeline.models.weights import TORCH_SUFFIXES
from schemas.errors import ModelError

WEIGHT_SUFFIXES: Final = (".safetensors", *TORCH_SUFFIXES, ".pkl")

_WEIGHT_ENTRIES: Final = ("model", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a file, and what a training run had stored beside them."""

    path: Path
    weights: dict[str, Tensor]
    entries: tuple[str, ...] = ()  # names beside the weights, such as optimizer
    iteration: int | None = None
    versions: Mapping[str, Any] | None = None  # of modules, as `state_dict()` records them

    @property
    def has_versions(self) -> bool:
        """Whether it holds module versions, whose absence misleads the reference (spec B-1)."""
        return self.versions is not None


def read_weights(path: str | Path) -> WeightsFile:
    """Return the tensors of a file; raises ModelError when it is absent or broken."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return WeightsFile(path, load_file(path))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is truncated or no safetensors file: {error}") from None
    if path.suffix not in WEIGHT_SUFFIXES:
        known = ", ".join(WEIGHT_SUFFIXES)
        raise ModelError(f"{path} is no kind of file that is read here; those are {known}")
    content = read_pickle(path) if path.suffix == ".pkl" else _load_torch(path)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a mapping of weights")
    if "blobs" in content:
        raise ModelError(
            f"{path} holds the blobs of a Caffe2 model, whose names detectron2 matches by guess; "
            "load it with detectron2's DetectionCheckpointer and save it again"
        )
    holder = next(
        (name for name in _WEIGHT_ENTRIES if isinstance(content.get(name), Mapping)), None
    )
    weights = content if holder is None else content[holder]
    iteration = content.get("iteration") if holder else None
    return WeightsFile(
        path,
        {str(name): _tensor(value, str(name), path) for name, value in weights.items()},
        tuple(str(name) for name in content if name != holder) if holder else (),
        iteration if isinstance(iteration, int) else None,
        getattr(weights, "_metadata", None),
    )


def _load_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, EOF and runtime errors, by torch's version
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ModelError(
                f"{path} holds an object of type {refused[1]}, which is refused because loading it "
                "runs code; save its weights alone with torch.save, where you trust the file"
            ) from None
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{path} is truncated or no PyTorch file: {type(error).__name__}: {reason}"
        ) from None


def _numpy_globals() -> list[Any]:
    """Return what the pickle of a numpy array names, in numpy 1 and in numpy 2."""
    # Both are private; they are what pickled arrays and scalars name.
    makers: list[Any] = [np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0]]
    packages = ("numpy.core", "numpy._core")
    named = [(maker, f"{p}.multiarray.{maker.__name__}") for maker in makers for p in packages]
    kinds = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return [np.ndarray, np.dtype, *named, *kinds]


def _tensor(value: Any, name: str, path: Path) -> Tensor:
    if isinstance(value, np.ndarray | np.generic):
        try:
            return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        except TypeError:  # texts, objects, long doubles
            raise ModelError(f"{path}: {name} is an array of {value.dtype}, no tensor") from None
    if not isinstance(value, Tensor):
        raise ModelError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    return value
