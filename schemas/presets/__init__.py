"""The rows of the paper's tables: settings of every step, and the numbers that were published.

A row is a YAML file beside this one: `--preset NAME` takes from it the settings of the command at
hand, and so does `--config FILE`. `given` are the settings that are a matter of place or of taste,
which a preset leaves to the command line; DATA and RUN stand for two directories.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field

from schemas.config import Config

STEPS: Final = "steps"

# In this order they are listed.
NAMES: Final = (
    "coco-stuff",
    "voc",
    "coco-stuff-cross",
    "voc-cross",
    "ade20k-150",
    "ade20k-847",
    "cityscapes",
    "pascal-context-59",
)


class Step(Config):
    """One command of a row."""

    settings: dict[str, Any] = Field({}, description="what the paper or its code says")
    given: dict[str, Any] = Field({}, description="what its command line says besides")


class Expected(Config):
    """Published figures, in percent as they were printed."""

    name: str
    source: str
    changed: dict[str, Any] = Field({}, description="settings of annotate, where others")
    seen_miou: float | None = None
    unseen_miou: float | None = None
    hiou: float | None = None
    miou: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """The figures that were published, by name."""
        names = ("seen_miou", "unseen_miou", "hiou", "miou")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


class Preset(Config):
    """One row: its steps in order, and what they should come to."""

    title: str
    seen_classes: int = Field(ge=1, description="classes that its models are trained on")
    trained_by: Literal["coco-stuff", "coco-stuff-cross"] | None = Field(
        None, description="preset whose trainings it takes"
    )
    steps: dict[str, Step]
    expected: tuple[Expected, ...] = ()
    notes: tuple[str, ...] = ()


@cache
def load_preset(name: str) -> Preset:
    """Return one of NAMES, with the trainings of another where it says so."""
    text = (Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_preset(yaml.safe_load(text))


def parse_preset(content: Mapping[str, Any]) -> Preset:
    """Return the preset of a file's content; raises pydantic's ValidationError."""
    preset = Preset.model_validate(content)
    if preset.trained_by is None:
        return preset
    trainings = {
        command: step
        for command, step in load_preset(preset.trained_by).steps.items()
        if command.startswith("train ")
    }
    return preset.model_copy(update={"steps": {**trainings, **preset.steps}})


def preset_names(command: str) -> tuple[str, ...]:
    """Return the presets that have settings of a command, such as `train proposals`."""
    return tuple(name for name in NAMES if command in load_preset(name).steps)
