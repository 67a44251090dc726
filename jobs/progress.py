"""What a running command shows: bars per stage on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

_LINE_EVERY_S: Final = 15.0

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """What a job reports to while it runs."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def say(self, what: str) -> None:
        """Announce the next step."""

    def start(self, stages: Sequence[str], total: int) -> None:
        """Announce stages through which `total` images will go."""

    def update(self, done: Mapping[str, int]) -> None:
        """Report how many images have left each stage."""


class Silent:
    """Shows nothing: the default when a job is called from Python."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, what: str) -> None:
        """Show nothing."""

    def start(self, stages: Sequence[str], total: int) -> None:
        """Show nothing."""

    def update(self, done: Mapping[str, int]) -> None:
        """Show nothing."""


class _Rate(ProgressColumn):
    """Images per second since the first one left the stage."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:7.1f} images/s" if speed else "      - images/s")


class TerminalProgress:
    """A bar per stage with images/s and time left; plain lines where output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), _Rate(),
            TextColumn("ETA"), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._total = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, what: str) -> None:
        """Print one line."""
        self._console.print(
            f"{what} ...", style="dim", highlight=False, markup=False, soft_wrap=True
        )

    def start(self, stages: Sequence[str], total: int) -> None:
        """Draw the bars."""
        self._total = total
        self._tasks = {stage: self._bars.add_task(stage, total=total) for stage in stages}
        self._started = self._last_line = time.monotonic()
        self._bars.start()

    def update(self, done: Mapping[str, int]) -> None:
        """Move the bars; where there are none, print a line every quarter of a minute."""
        for stage, task in self._tasks.items():
            # A retried batch is counted twice; the bar must not run past its end.
            self._bars.update(task, completed=min(done.get(stage, 0), self._total))
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            counts = ", ".join(
                f"{stage} {self._describe(done, stage, now)}" for stage in self._tasks
            )
            self._console.print(counts, highlight=False, markup=False, soft_wrap=True)

    def _describe(self, done: Mapping[str, int], stage: str, now: float) -> str:
        count = min(done.get(stage, 0), self._total)
        rate = count / (now - self._started)
        left = f", ETA {(self._total - count) / rate:.0f} s" if rate else ""
        return f"{count}/{self._total} ({rate:.1f} images/s{left})"
