"""Checkpoints of a training: the state after a step, one file each, whole or absent.

Ray Train's own checkpoints are written in place and read again by the same version of Ray only;
these are plain files of PyTorch. Random numbers have no state to be kept: they follow from the
seed and the step, and so does the position in the order of images.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

import torch
from torch import nn

from pipeline.files import delete_files, list_files, read_bytes, write_bytes
from schemas.errors import OutputError

FOLDER: Final = "checkpoints"
_SUFFIX: Final = ".pt"


def steps_saved(output: str) -> list[int]:
    """Return the steps after which there is a checkpoint, in order."""
    names = [path.rpartition("/")[2] for path in list_files(output, FOLDER)]
    stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def save(
    output: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> None:
    """Write the state after so many steps, then delete all but the newest `keep` checkpoints."""
    data = BytesIO()
    torch.save(
        {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, data
    )
    write_bytes(output, _path(step), data.getvalue())
    delete_files(output, [_path(old) for old in steps_saved(output)[:-keep]])


def load(output: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a model and its optimiser into the state after a step; raises OutputError."""
    try:
        content: dict[str, Any] = torch.load(
            BytesIO(read_bytes(output, _path(step))), map_location="cpu", weights_only=True
        )
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except OutputError:
        raise
    except Exception as error:  # zip, pickle, key and shape errors, by torch's version
        reason = (str(error).strip().splitlines() or [""])[0]
        raise OutputError(
            f"checkpoint {output}/{_path(step)} cannot be read ({type(error).__name__}: {reason}); "
            "delete it to go on from the one before"
        ) from None


def _path(step: int) -> str:
    return f"{FOLDER}/{step:08d}{_SUFFIX}"
