"""`segmill models`: what the registries hold."""

from dataclasses import dataclass

from pipeline.models import CLASSIFIERS, PROPOSERS
from schemas.config import Config


@dataclass(frozen=True)
class ModelsResult:
    """Name and one-line summary of every model."""

    proposers: dict[str, str]
    classifiers: dict[str, str]


def models(config: Config) -> ModelsResult:
    """Return the registered proposers and classifiers."""
    return ModelsResult(
        proposers={name: entry().summary for name, entry in PROPOSERS.items()},
        classifiers={name: entry().summary for name, entry in CLASSIFIERS.items()},
    )
