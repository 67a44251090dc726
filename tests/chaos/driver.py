"""The command under test, which also writes its progress to a file as lines of JSON.

python -m tests.chaos.driver tiny|quick LOG annotate SOURCE ...

With `quick` the models are replaced by the stages of `tests.chaos.quick`.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import jobs.progress
from jobs.cli import main
from jobs.progress import TerminalProgress
from tests.chaos import quick


class LoggedProgress(TerminalProgress):
    def __init__(self, log: Path, console: Console) -> None:
        super().__init__(console)
        self._log = log

    def say(self, what: str) -> None:
        self._write(said=what)
        super().say(what)

    def start(self, stages: Sequence[str], total: int, unit: str = "images", done: int = 0) -> None:
        self._write(stages=list(stages), total=total)
        super().start(stages, total, unit, done)

    def update(self, done: Mapping[str, int], note: str = "") -> None:
        self._write(done=dict(done))
        super().update(done, note)

    def _write(self, **line: Any) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    stages, log, *command = sys.argv[1:]
    jobs.progress.TerminalProgress = partial(LoggedProgress, Path(log))  # type: ignore
    if stages == "quick":
        quick.without_model_libraries()
        quick.install()
    sys.exit(main(command))
