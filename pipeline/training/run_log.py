"""The log of a training: a line of JSON per logged step, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tensorboardX import SummaryWriter

from pipeline.files import write_bytes

LOG_FILE: Final = "log.jsonl"
TENSORBOARD: Final = "tensorboard"


class RunLog:
    """Goes on after `step`; what a run that was cut short had written beyond is taken back."""

    def __init__(self, directory: Path, step: int) -> None:
        file = directory / LOG_FILE
        kept = [line for line in read_log(directory) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_bytes(str(directory), LOG_FILE, text.encode())
        self._file = file.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write what was measured in a step (from 1), at once."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Return the logged steps in order; none where there is no log."""
    return list(_lines(directory / LOG_FILE))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # the line that a killed run was writing
