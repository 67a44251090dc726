"""A detectron2 model on disk: its configuration, read as plain data, and its file of weights.

A directory holds `config.yaml` and the weights, as detectron2's training writes them; a model card
(README.md) may state the licence. Configurations of others may carry YAML tags that run code when
detectron2 reads them (`!!python/object/apply`): here those are refused.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from pipeline.models.checkpoint_file import WEIGHT_SUFFIXES
from pipeline.models.weights import sha256_of
from schemas.errors import ModelError

CONFIG_FILE: Final = "config.yaml"
_NEWEST_FILE: Final = "last_checkpoint"  # names the newest checkpoint of a training run
_BASE_KEY: Final = "_BASE_"
_TAG_PREFIX: Final = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Detectron2Files:
    """What a directory holds; `config` is the mapping of all its files, bases merged."""

    directory: Path
    config: dict[str, Any]
    weights: Path

    @classmethod
    def find(cls, directory: str | None) -> "Detectron2Files":
        """Read the configuration and find the weights; raises ModelError where either is absent."""
        if directory is None:
            raise ModelError(
                "proposer detectron2 needs weights: set proposer_weights to a directory that holds "
                f"{CONFIG_FILE} and the weights ({', '.join(WEIGHT_SUFFIXES)})"
            )
        path = Path(directory)
        if not (path / CONFIG_FILE).is_file():
            raise ModelError(f"{directory} is no directory with a {CONFIG_FILE} of detectron2")
        return cls(path, read_config(path / CONFIG_FILE), _find_weights(path))

    @property
    def config_text(self) -> str:
        """The merged configuration as YAML without tags."""
        return yaml.safe_dump(self.config)

    def identity(self, modules: tuple[str, ...]) -> str:
        """Return the SHA-256 of all that decides the masks; logs of training are no part of it."""
        parts = (self.config_text, *modules, sha256_of(self.weights))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _find_weights(directory: Path) -> Path:
    newest = directory / _NEWEST_FILE
    if newest.is_file():
        # Only a file beside it: the text comes from whoever trained the model.
        weights = directory / Path(newest.read_text(encoding="utf-8").strip()).name
        if not weights.is_file():
            raise ModelError(f"{newest} names {weights.name}, which is not beside it")
        return weights
    found = sorted(path for path in directory.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelError(
            f"{directory} must hold one file of weights ({', '.join(WEIGHT_SUFFIXES)}), or a file "
            f"{_NEWEST_FILE} that names one; there are {len(found)}: {names}"
        )
    return found[0]


def read_config(path: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping of a YAML file over those of its `_BASE_`, one or a list, as detectron2.

    `readers` are the files that led here. Raises ModelError for a file that cannot be read, holds
    anything but plain data, or is its own base.
    """
    if path.resolve() in readers:
        raise ModelError(f"{path} is its own {_BASE_KEY}")
    content = _read_yaml(path)
    bases = content.pop(_BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        below = read_config(_base_path(path, base), (*readers, path.resolve()))
        _merge(below, merged, path)
    _merge(content, merged, path)
    return merged


def _base_path(path: Path, base: Any) -> Path:
    if not isinstance(base, str) or "://" in base:
        raise ModelError(f"{path}: {_BASE_KEY} is {base!r}; it must be a file of this machine")
    return path.parent / Path(base).expanduser()


def _merge(source: dict[str, Any], target: dict[str, Any], path: Path) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and key in target:
            if not isinstance(target[key], dict):
                raise ModelError(f"{path}: {key} is a mapping, in its {_BASE_KEY} it is none")
            _merge(value, target[key], path)
        else:
            target[key] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelError(f"cannot read {path}: {reason}") from None
    except yaml.constructor.ConstructorError as error:
        raise ModelError(f"{path}{_line(error)}: {_problem(error)}") from None
    except yaml.MarkedYAMLError as error:
        raise ModelError(f"{path}{_line(error)}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # a control character
        raise ModelError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a mapping of settings")
    return content


def _line(error: yaml.MarkedYAMLError) -> str:
    return f", line {error.problem_mark.line + 1}" if error.problem_mark else ""


def _problem(error: yaml.constructor.ConstructorError) -> str:
    """Return why something that is well-formed was not taken; mostly it is a tag."""
    problem = str(error.problem)
    if _TAG_PREFIX not in problem:
        return problem
    tag = problem.partition(_TAG_PREFIX)[2].rstrip("'")
    return f"the tag !!{tag} is refused, as such tags run code when they are read; write the value"
