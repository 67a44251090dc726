"""`segmill presets`: the rows of the paper's tables, and how long their trainings would take.

No time is assumed: an estimate is the number of steps times a step that was measured, by whoever
asks or by a training whose settings are those of the preset where they decide the time.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from schemas.errors import SettingsError
from schemas.presets import NAMES, Preset, load_preset
from schemas.presets_config import PresetsConfig
from schemas.prompt_training_config import TrainPromptsConfig
from schemas.training_config import TrainProposalsConfig

PROPOSALS: Final = "train proposals"
PROMPTS: Final = "train prompts"

_TRAININGS: Final[Mapping[str, type[TrainProposalsConfig] | type[TrainPromptsConfig]]] = {
    PROPOSALS: TrainProposalsConfig,
    PROMPTS: TrainPromptsConfig,
}
# Which settings decide how long a step takes, and tell a training of one kind from another.
_TIMED: Final = {
    PROPOSALS: ("batch_size", "crop_size", "architecture", "precision"),
    PROMPTS: ("vectors", "clip"),
}


@dataclass(frozen=True)
class Estimate:
    """Steps of a training, and the GPU hours of the measured step; None with the reason."""

    steps: int  # over all seeds
    gpu_hours: float | None
    why_not: str = ""


@dataclass(frozen=True)
class PresetsResult:
    """Presets by name, and the estimates of their trainings by name and command."""

    presets: Mapping[str, Preset]
    estimates: Mapping[str, Mapping[str, Estimate]]
    is_one: bool


@dataclass(frozen=True)
class _Measured:
    """A time per step, and of what; `settings` is None where the asker says it fits."""

    command: str
    seconds_per_step: float
    settings: Mapping[str, Any] | None = None

    def misfit(self, training: TrainProposalsConfig | TrainPromptsConfig, classes: int) -> str:
        """Return in which setting it differs from a training; nothing where it fits."""
        if self.settings is None:
            return ""
        own = {**training.model_dump(mode="json"), "seen classes": classes}
        names = (*_TIMED[self.command], *(("seen classes",) if self.command == PROMPTS else ()))
        for name in names:
            if self.settings.get(name) != own[name]:
                return f"measured with {name} {self.settings.get(name)}, not {own[name]}"
        return ""


def presets(config: PresetsConfig) -> PresetsResult:
    """Return the presets with their estimates; raises SettingsError for a name or log of none."""
    if config.name is not None and config.name not in NAMES:
        raise SettingsError(f"there is no preset {config.name!r}; there are {', '.join(NAMES)}")
    names = NAMES if config.name is None else (config.name,)
    measured = [_read(directory) for directory in config.log]
    for command, seconds in (
        (PROPOSALS, config.seconds_per_step),
        (PROMPTS, config.prompt_seconds_per_step),
    ):
        if seconds is not None:
            measured.append(_Measured(command, seconds))
    found = {name: load_preset(name) for name in names}
    return PresetsResult(
        found,
        {name: _estimates(preset, measured, config.gpus) for name, preset in found.items()},
        is_one=config.name is not None,
    )


def training_of(preset: Preset, command: str) -> TrainProposalsConfig | TrainPromptsConfig:
    """Return the full settings of a training of a preset, with DATA and RUN as they stand."""
    step = preset.steps[command]
    return _TRAININGS[command].model_validate({**step.settings, **step.given})


def command_lines(name: str, preset: Preset) -> list[str]:
    """Return the commands of a row, to be run in this order."""
    return [_command_line(name, command, step.given) for command, step in preset.steps.items()]


def _command_line(name: str, command: str, given: Mapping[str, Any]) -> str:
    first = {"annotate": "source", "evaluate": "dataset"}.get(command)
    words = ["segmill", *command.split()]
    if first is not None:
        words.append(str(given[first]))
    words += ["--preset", name]
    for key, value in given.items():
        if key != first:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _estimates(preset: Preset, measured: Sequence[_Measured], gpus: int) -> dict[str, Estimate]:
    return {
        command: _estimate(training_of(preset, command), command, preset, measured, gpus)
        for command in preset.steps
        if command in _TRAININGS
    }


def _estimate(
    training: TrainProposalsConfig | TrainPromptsConfig,
    command: str,
    preset: Preset,
    measured: Sequence[_Measured],
    gpus: int,
) -> Estimate:
    steps = training.steps
    if isinstance(training, TrainPromptsConfig):
        steps *= len(training.seeds)
    reasons = []
    for found in measured:
        if found.command != command:
            continue
        misfit = found.misfit(training, preset.seen_classes)
        if not misfit:
            return Estimate(steps, steps * found.seconds_per_step * gpus / 3600)
        reasons.append(misfit)
    return Estimate(steps, None, "; ".join(reasons) or "no step was measured")


def _read(directory: Path) -> _Measured:
    """Return the median time of the logged steps of a training."""
    # Heavy imports, wanted with a log alone.
    from jobs.training_plan import SETTINGS_FILE
    from pipeline.training.run_log import read_log

    try:
        settings = json.loads((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SettingsError(
            f"log {directory} is no output of a training: it has no {SETTINGS_FILE} of one"
        ) from None
    command = PROPOSALS if "crop_size" in settings else PROMPTS
    directories = [directory] if command == PROPOSALS else sorted(directory.glob("seed-*"))
    times = [
        line["seconds_per_step"]
        for folder in directories
        for line in read_log(folder)
        if "seconds_per_step" in line
    ]
    if not times:
        raise SettingsError(f"log {directory} holds no time of a step; it has made too few")
    seen = [entry.get("seen") for entry in settings.get("classes", [])]
    flagged = sum(map(bool, seen)) if any(flag is not None for flag in seen) else len(seen)
    return _Measured(command, median(times), {**settings, "seen classes": flagged})
