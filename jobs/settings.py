"""Settings of one command from flags, environment, a YAML file and defaults, in this order."""

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobs.cli import ENV_PREFIX
from schemas.presets import STEPS, load_preset, parse_preset, preset_names

Model = TypeVar("Model", bound=BaseModel)


class BadSettingsError(Exception):
    """One line that names the setting, what was given, and what would have been right."""


def read_settings(
    program: str, model: type[Model], positional: Sequence[str], arguments: Sequence[str]
) -> Model:
    """Return the validated settings of a command.

    `--config FILE` names a YAML mapping of settings, or a preset's file; where a preset has the
    command, `--preset NAME` gives the paper's settings for one data set, below all other sources.
    Raises BadSettingsError; `--help` prints and raises SystemExit(0).
    """
    command = program.partition(" ")[2]
    presets = preset_names(command)
    own, rest = _split_own(arguments, bool(presets))
    from_file = _read_yaml(own.config, command) if own.config else {}
    if own.preset:
        from_file = {**_preset(own.preset, command, presets), **from_file}
    # What the file or the environment gives must not be demanded of the command line again.
    from_environment = {
        key.removeprefix(ENV_PREFIX).lower() for key in os.environ if key.startswith(ENV_PREFIX)
    }
    given = from_file.keys() | from_environment
    demanded = [name for name in positional if name not in given]
    settings = _settings_class(model, demanded, from_file)
    parser = _Parser(
        prog=program,
        description=model.__doc__,
        epilog=f"Settings may also come from {ENV_PREFIX}NAME in the environment, or from a YAML "
        "file named by --config; flags win over the environment, the environment over the file."
        + (f" --preset takes {', '.join(presets)}." if presets else ""),
        known=[f"--{name.replace('_', '-')}" for name in model.model_fields],
        positional=positional,
        demanded=demanded,
    )
    try:
        source = CliSettingsSource(  # type: ignore[var-annotated]
            settings, root_parser=parser, cli_parse_args=rest, cli_prog_name=program,
            cli_kebab_case=True, cli_implicit_flags=True, cli_avoid_json=True,
            cli_hide_none_type=True,
        )  # fmt: skip
        values = settings(_cli_settings_source=source).model_dump()
        return model.model_validate(values)
    except ValidationError as error:
        raise BadSettingsError(_describe(error, model)) from None
    except SettingsError as error:
        raise BadSettingsError(_describe_unread(error, model)) from None


def _untold(source: PydanticBaseSettingsSource, told: dict[str, Any]) -> dict[str, Any]:
    """Return what no source above tells: Pydantic would merge a mapping with that of another."""
    return {name: value for name, value in told.items() if name not in source.current_state}


class _Environment(EnvSettingsSource):
    """The variables, below flags."""

    def __call__(self) -> dict[str, Any]:
        return _untold(self, super().__call__())


class _File(InitSettingsSource):
    """The YAML file, below flags and variables."""

    def __call__(self) -> dict[str, Any]:
        return _untold(self, super().__call__())


class _Parser(argparse.ArgumentParser):
    """Reports one line instead of a usage block, and never takes an abbreviated flag.

    Of the positional settings those are demanded that no other source gives.
    """

    def __init__(
        self,
        *,
        known: Sequence[str] = (),
        positional: Sequence[str] = (),
        demanded: Sequence[str] = (),
        **options: Any,
    ) -> None:
        # `--ignore` silently meaning `--ignore-label` is how typos turn into wrong datasets.
        super().__init__(allow_abbrev=False, **options)
        self._known = known
        self._positional = positional
        self._demanded = demanded

    def parse_known_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Take words beyond the demanded ones, which win over what other sources give."""
        found, rest = super().parse_known_args(args, namespace)
        if not rest or any(word.startswith("-") for word in rest):
            return found, rest
        words = [*(getattr(found, name) for name in self._demanded), *rest]
        by_flag = [
            name for name in self._positional if name not in self._demanded and name in found
        ]
        if by_flag or len(words) > len(self._positional):
            return found, rest
        for name, word in zip(self._positional, words, strict=False):
            setattr(found, name, word)
        return found, []

    def error(self, message: str) -> NoReturn:
        flags = [word for word in message.split() if word.startswith("--")]
        near = [
            match
            for flag in flags
            for match in difflib.get_close_matches(flag.partition("=")[0], self._known, n=1)
            if flag not in self._known
        ]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadSettingsError(f"{message}{hint}")


def _split_own(arguments: Sequence[str], has_presets: bool) -> tuple[argparse.Namespace, list[str]]:
    """Take out the flags that name other sources of settings."""
    parser = _Parser(add_help=False)
    parser.add_argument("--config", type=Path)
    parser.set_defaults(preset=None)
    if has_presets:
        parser.add_argument("--preset")
    return parser.parse_known_args(list(arguments))


def _preset(name: str, command: str, presets: Sequence[str]) -> dict[str, Any]:
    if name not in presets:
        raise BadSettingsError(f"there is no preset {name!r}; there are {', '.join(presets)}")
    return load_preset(name).steps[command].settings


def _read_yaml(path: Path, command: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadSettingsError(f"cannot read --config {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise BadSettingsError(f"--config {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise BadSettingsError(f"--config {path} must hold a mapping of settings to values")
    if STEPS in content and isinstance(content[STEPS], dict):
        return _of_preset(path, content, command)
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _of_preset(path: Path, content: dict[str, Any], command: str) -> dict[str, Any]:
    """Return what a file laid out as a preset says of one command."""
    try:
        steps = parse_preset(content).steps
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise BadSettingsError(f"--config {path} is no preset: {place}: {first['msg']}") from None
    if command not in steps:
        raise BadSettingsError(
            f"--config {path} has no settings of `{command}`; it has {', '.join(steps)}"
        )
    return steps[command].settings


def _settings_class(
    model: type[BaseModel], positional: Sequence[str], from_file: dict[str, Any]
) -> type[BaseSettings]:
    class Settings(BaseSettings):
        """Sources in order of precedence; the flags' source is put before them."""

        model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid")

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Read the environment first, then the YAML file."""
            return _Environment(settings_cls), _File(settings_cls, from_file)

    fields: dict[str, Any] = {name: field.annotation for name, field in model.model_fields.items()}
    marked: Any = CliPositionalArg  # an alias to be subscripted with a value, not with a type
    fields |= {name: marked[fields[name]] for name in positional}
    namespace = {"__annotations__": fields, "__module__": __name__, **model.model_fields}
    return type(model.__name__, (Settings,), namespace)


def _describe_unread(error: SettingsError, model: type[BaseModel]) -> str:
    """Return in one line what a source holds that cannot be read as what a setting takes."""
    told = str(error).splitlines()[0]
    field = re.search(rf'field "(\w+)" from source "{_Environment.__name__}"', told)
    if not field:
        return told
    variable = f"{ENV_PREFIX}{field[1].upper()}"
    is_list = "tuple" in str(model.model_fields[field[1]].annotation)
    example = '["jpg","png"]' if is_list else '{"NAME": 1}'
    return f"{variable} is {os.environ.get(variable)!r}: it must be JSON, such as {example}"


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first problem in one line, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    flag = f"--{name.replace('_', '-')}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "missing":
        return f"{flag} is required: {model.model_fields[name].description}{more}"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(model.model_fields), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"there is no setting {name!r}{hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return f"{message}{more}"
    return f"{flag} is {first['input']!r}: {message[0].lower()}{message[1:]}{more}"
