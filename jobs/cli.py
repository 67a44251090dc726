"""The `segmill` command: flags, environment and YAML from the settings model of each command.

Exit codes: 0 done, 1 done but too many images were bad (or the run failed), 2 wrong settings,
3 another run holds the dataset, 130 and 143 ended by SIGINT and SIGTERM.
Nothing heavy is imported until a command is known, so that `segmill --help` is immediate.
"""

import difflib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Final, NoReturn

ENV_PREFIX: Final = "SEGMILL_"
_LOG_FORMAT: Final = f"{ENV_PREFIX}LOG_FORMAT"  # text, or json: a line of JSON per event
_LOG_LEVEL: Final = f"{ENV_PREFIX}LOG_LEVEL"
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class _Command:
    """Where a command's settings and its function are, and what it prints."""

    summary: str
    config: str  # module:name, in schemas
    run: str  # module:function, Config -> result
    show: str  # module:function in jobs.show, (result, console) -> exit code
    positional: tuple[str, ...] = ()


COMMANDS: Final[dict[str, _Command]] = {
    "demo": _Command(
        "everything, on synthetic scenes and the embedded models, with a report",
        "demo_config:DemoConfig", "jobs.demo:demo", "annotation:show_demo",
    ),
    "plan": _Command(
        "predict what annotate would do, take and cost; look over the vocabulary",
        "plan_config:PlanConfig", "jobs.plan:plan", "plan:show_plan", ("source",),
    ),
    "simulate": _Command(
        "predict far larger runs on far larger clusters from a measured one, and what binds",
        "simulate_config:SimulateConfig", "jobs.simulate:simulate",
        "simulation:show_simulate", ("dataset",),
    ),
    "annotate": _Command(
        "label a folder, bucket or list of images as a Parquet dataset",
        "annotate_config:AnnotateConfig", "jobs.annotate:annotate", "annotation:show_annotate",
        ("source",),
    ),
    "relabel": _Command(
        "give a dataset other names, prompts or thresholds, from its kept embeddings",
        "relabel_config:RelabelConfig",
        "jobs.relabel:relabel", "annotation:show_annotate", ("dataset",),
    ),
    "evaluate": _Command(
        "compare a dataset with label maps: seen, unseen and harmonic mean IoU",
        "evaluate_config:EvaluateConfig", "jobs.evaluate:evaluate", "evaluation:show_evaluate",
        ("dataset",),
    ),
    "report": _Command(
        "write one HTML page to look at a dataset",
        "report_config:ReportConfig", "jobs.report:report", "annotation:show_report", ("dataset",),
    ),
    "explain": _Command(
        "say why one pixel has its label: mask, crop, scores, thresholds, weights, run",
        "explain_config:ExplainConfig", "jobs.explain:explain", "comparison:show_explain",
        ("dataset",),
    ),
    "diff": _Command(
        "compare two versions of labels: moved pixels, classes, images; a gate for CI",
        "diff_config:DiffConfig", "jobs.diff:diff", "comparison:show_diff",
        ("before", "after"),
    ),
    "versions": _Command(
        "list the published versions of a dataset",
        "upkeep_config:VersionsConfig", "jobs.versions:list_versions", "dataset:show_versions",
        ("dataset",),
    ),
    "verify": _Command(
        "read a dataset again: files, hashes, the account of rows, label maps",
        "upkeep_config:VerifyConfig", "jobs.verify:verify", "dataset:show_verify", ("dataset",),
    ),
    "status": _Command(
        "say what of a dataset is done, failed and left, for people and monitors",
        "status_config:StatusConfig", "jobs.status:status", "status:show_status",
        ("dataset",),
    ),
    "drain": _Command(
        "beside Ray on a spot machine: wait for the notice of its end, and give it no new work",
        "drain_config:DrainConfig", "jobs.drain:drain", "status:show_drain",
    ),
    "vacuum": _Command(
        "delete old versions of a dataset, and files that no version names",
        "upkeep_config:VacuumConfig", "jobs.vacuum:vacuum", "dataset:show_vacuum", ("dataset",),
    ),
    "export": _Command(
        "write a dataset in the format of a trainer or a labelling tool",
        "export_config:ExportConfig", "jobs.export:export", "export:show_export",
        ("dataset",),
    ),
    "register": _Command(
        "show a version of a dataset as a snapshot of an Iceberg table; no row is copied",
        "register_config:RegisterConfig", "jobs.register:register",
        "dataset:show_register", ("dataset", "table"),
    ),
    "review": _Command(
        "write the images most worth a person's time to Label Studio or CVAT",
        "trust_config:ReviewConfig", "jobs.review:review", "trust:show_review",
        ("dataset",),
    ),
    "correct": _Command(
        "take reviewed tasks back: their labels stand in the place of the model's",
        "trust_config:CorrectConfig", "jobs.correct:correct", "trust:show_correct",
        ("dataset", "reviews"),
    ),
    "calibrate": _Command(
        "find the score floors from which on segments are right as often as promised",
        "trust_config:CalibrateConfig", "jobs.calibrate:calibrate",
        "trust:show_calibrate", ("dataset",),
    ),
    "weights convert": _Command(
        "write the models of a checkpoint of the paper's authors in Segmill's layout",
        "weights_config:WeightsConvertConfig", "jobs.weights:convert", "models:show_convert",
        ("checkpoint",),
    ),
    "weights inspect": _Command(
        "say what a file or directory of weights holds",
        "weights_config:WeightsInspectConfig", "jobs.weights:inspect", "models:show_inspect",
        ("weights",),
    ),
    "datasets list": _Command(
        "list the data sets that can be prepared, and what to download for each",
        "config:Config", "jobs.datasets:list_datasets", "training:show_datasets",
    ),
    "datasets prepare": _Command(
        "turn an official download into images, maps of class indices and a vocabulary",
        "datasets_config:DatasetsPrepareConfig", "jobs.datasets:prepare", "training:show_prepare",
        ("name",),
    ),
    "train proposals": _Command(
        "train a MaskFormer on the seen classes of labelled images",
        "training_config:TrainProposalsConfig",
        "jobs.train_proposals:train_proposals", "training:show_train_proposals",
    ),
    "train self-training": _Command(
        "train a proposer on a dataset's labels of unseen classes, and say what that gains",
        "self_training_config:TrainSelfTrainingConfig",
        "jobs.train_self_training:train_self_training", "self_training:show_self_training",
    ),
    "train prompts": _Command(
        "learn vectors around class names, from regions of the seen classes",
        "prompt_training_config:TrainPromptsConfig",
        "jobs.train_prompts:train_prompts", "prompts:show_train_prompts",
    ),
    "presets": _Command(
        "list the rows of the paper's tables: commands, expected numbers, GPU hours",
        "presets_config:PresetsConfig",
        "jobs.presets:presets", "presets:show_presets", ("name",),
    ),
    "models": _Command(
        "list the proposers and classifiers",
        "config:Config", "jobs.models:models", "models:show_models",
    ),
}  # fmt: skip


class _UsageError(Exception):
    """The command line itself is wrong; one line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_overview())
        return 0
    if arguments[0] in {"-V", "--version"}:
        from importlib.metadata import version

        print(f"segmill {version('segmill')}")
        return 0
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return _run(name, COMMANDS[name], arguments[words:])
    return _complain("segmill", f"there is no command {name!r}{_suggest(name, COMMANDS)}")


def _run(name: str, command: _Command, arguments: list[str]) -> int:
    program = f"segmill {name}"
    try:
        _check_logging()
        config = _settings(program, command, arguments)
    except _UsageError as error:
        return _complain(program, str(error))
    # Heavy imports start here: the settings are known to be well-formed.
    from rich.console import Console

    from jobs.progress import RecordedProgress, Silent, TerminalProgress
    from schemas.errors import LockedError, SegmillError, SettingsError

    as_json = _logs_json()
    console = Console(stderr=True, quiet=as_json)
    progress = RecordedProgress(Silent() if as_json else TerminalProgress(console))
    _quiet_libraries(as_json)
    terminated = threading.Event()
    try:
        job = _load(command.run)
        # stdout is for the result alone; Ray prints there when a process of its dies.
        with _terminable(terminated), redirect_stdout(sys.stderr):
            result = job(config, progress) if _takes_progress(job) else job(config)
    except SettingsError as error:
        return _complain(program, str(error))
    except LockedError as error:
        return _complain(program, str(error), code=3)
    except SegmillError as error:
        return _complain(program, str(error), code=1)
    except KeyboardInterrupt:
        how, code = ("ended by SIGTERM", 143) if terminated.is_set() else ("interrupted", 130)
        return _complain(program, f"{how}; what was finished is kept", code)
    return int(_load(f"jobs.show.{command.show}")(result, console))


@contextmanager
def _terminable(terminated: threading.Event) -> Iterator[None]:
    """Let SIGTERM, by which schedulers end a process, unwind the stack as Ctrl-C does.

    Locks and Ray are then left in order. The event tells them apart: Ray raises interrupts anew.
    """

    def terminate(number: int, frame: object) -> NoReturn:
        terminated.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def _settings(program: str, command: _Command, arguments: list[str]) -> Any:
    """Return settings from flags, environment, YAML file and defaults, in this order."""
    from jobs.settings import BadSettingsError, read_settings

    model = _load(f"schemas.{command.config}")
    try:
        return read_settings(program, model, command.positional, arguments)
    except BadSettingsError as error:
        raise _UsageError(str(error)) from None


def _takes_progress(job: Callable[..., Any]) -> bool:
    return "progress" in job.__code__.co_varnames[: job.__code__.co_argcount]


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _check_logging() -> None:
    if (form := os.environ.get(_LOG_FORMAT, "text")) not in ("text", "json"):
        raise _UsageError(f"{_LOG_FORMAT} is {form!r}; it may be text or json")
    if (level := os.environ.get(_LOG_LEVEL, "ERROR")).upper() not in _LEVELS:
        raise _UsageError(f"{_LOG_LEVEL} is {level!r}; it may be {', '.join(_LEVELS)}")


def _logs_json() -> bool:
    return os.environ.get(_LOG_FORMAT) == "json"


def _quiet_libraries(as_json: bool) -> None:
    """Keep libraries from writing between the bars; our own errors say what went wrong."""
    import logging
    import warnings

    from pipeline.run_log import EVENTS, JsonFormatter
    from pipeline.secrets import hide_in_output

    level = os.environ.get(_LOG_LEVEL, "ERROR").upper()
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
    EVENTS.handlers.clear()
    if as_json:
        (handler,) = logging.getLogger().handlers
        handler.setFormatter(JsonFormatter())
        EVENTS.addHandler(handler)
    hide_in_output()
    warnings.simplefilter("ignore")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: segmill COMMAND [settings]",
            "",
            "Zero-shot semantic segmentation of large image corpora into Parquet datasets.",
            "",
            *lines,
            "",
            "segmill COMMAND --help lists the settings of a command. Every setting may also come",
            f"from the environment ({ENV_PREFIX}NAME) or from a YAML file (--config FILE).",
            f"{_LOG_FORMAT}=json makes every line on stderr an object of JSON.",
        ]
    )


def _suggest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _complain(program: str, problem: str, code: int = 2) -> int:
    from pipeline.secrets import hide_secrets

    message = hide_secrets(" ".join(problem.split()))
    if _logs_json():
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        values = {"time": time, "level": "ERROR", "logger": program, "message": message}
        print(json.dumps({**values, "exit_code": code}), file=sys.stderr)
    else:
        print(f"{program}: {message}", file=sys.stderr)
    return code


def run() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
