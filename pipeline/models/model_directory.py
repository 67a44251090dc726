"""A network of ours as a directory: `config.json` and `model.safetensors`, every key checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.checkpoint_file import read_weights
from schemas.errors import ModelError

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"

Config = TypeVar("Config", bound=BaseModel)


def read_config(directory: str | Path, kind: type[Config]) -> Config:
    """Read a directory's `config.json` without building the network; raises ModelError."""
    file = Path(directory) / CONFIG_FILE
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = f"{'.'.join(map(str, problems[0]['loc']))}: {problems[0]['msg']}".removeprefix(": ")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"{file} is no {kind.__name__}: {first}{more}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error


def load_weights(network: nn.Module, directory: str | Path) -> None:
    """Fill a network with the weights of a directory, in fp32.

    Raises ModelError for a missing or truncated file, and one that names every missing,
    unexpected and misshapen weight.
    """
    file = Path(directory) / WEIGHTS_FILE
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in read_weights(file).weights.items()
    }
    _refuse_mismatch(network.state_dict(), weights, file)
    network.load_state_dict(weights)


def save_network(
    network: nn.Module, config: BaseModel, directory: str | Path, dtype: torch.dtype
) -> None:
    """Write `config.json` and `model.safetensors`, floats stored as `dtype`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = config.model_dump_json(indent=2)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    save_file(
        {
            name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
            for name, value in network.state_dict().items()
        },
        directory / WEIGHTS_FILE,
    )


def _refuse_mismatch(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path
) -> None:
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    if problems:
        raise ModelError(f"{file} does not fit its {CONFIG_FILE}: {'; '.join(problems)}")
