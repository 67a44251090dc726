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

from pipeline.run_log import tell

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

    def start(self, stages: Sequence[str], total: int, unit: str = "images", done: int = 0) -> None:
        """Announce stages through which `total` units will go, and have gone before this run."""

    def update(self, done: Mapping[str, int], note: str = "") -> None:
        """Report how many units have left each stage; a note is shown beside."""


class Silent:
    """Shows nothing: the default when a job is called from Python."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, what: str) -> None:
        """Show nothing."""

    def start(self, stages: Sequence[str], total: int, unit: str = "images", done: int = 0) -> None:
        """Show nothing."""

    def update(self, done: Mapping[str, int], note: str = "") -> None:
        """Show nothing."""


class RecordedProgress:
    """Shows what another progress shows, and tells it to the log of the run as well."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._total = 0
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._shown.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shown.__exit__(kind, error, traceback)

    def say(self, what: str) -> None:
        """Tell and show the next step."""
        tell(what)
        self._shown.say(what)

    def start(self, stages: Sequence[str], total: int, unit: str = "images", done: int = 0) -> None:
        """Tell and show stages and how much is before them."""
        self._total, self._last_line = total, time.monotonic()
        tell("the stages start", stages=list(stages), total=total, unit=unit, done=done)
        self._shown.start(stages, total, unit, done)

    def update(self, done: Mapping[str, int], note: str = "") -> None:
        """Show how far it is; tell it every quarter of a minute."""
        now = time.monotonic()
        if now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            tell("at work", done=dict(done), total=self._total, note=note)
        self._shown.update(done, note)


class _Rate(ProgressColumn):
    """Units per second since the first one left the stage."""

    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        return Text(f"{speed:7.1f} {unit}/s" if speed else f"      - {unit}/s")


class TerminalProgress:
    """A bar per stage with units/s and time left; plain lines where output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), _Rate(),
            TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._unit, self._total, self._before = "images", 0, 0
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

    def start(self, stages: Sequence[str], total: int, unit: str = "images", done: int = 0) -> None:
        """Draw the bars."""
        self._unit, self._total, self._before = unit, total, done
        self._tasks = {
            stage: self._bars.add_task(stage, total=total, completed=done, unit=unit, note="")
            for stage in stages
        }
        self._started = self._last_line = time.monotonic()
        self._bars.start()

    def update(self, done: Mapping[str, int], note: str = "") -> None:
        """Move the bars; where there are none, print a line every quarter of a minute."""
        for stage, task in self._tasks.items():
            # A retried batch is counted twice; the bar must not run past its end.
            count = min(done.get(stage, 0), self._total)
            self._bars.update(task, completed=count, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            counts = ", ".join(
                f"{stage} {self._describe(done, stage, now)}" for stage in self._tasks
            )
            if note:
                counts = f"{counts}, {note}"
            self._console.print(counts, highlight=False, markup=False, soft_wrap=True)

    def _describe(self, done: Mapping[str, int], stage: str, now: float) -> str:
        count = min(done.get(stage, 0), self._total)
        rate = max(0, count - self._before) / (now - self._started)
        left = f", ETA {(self._total - count) / rate:.0f} s" if rate else ""
        return f"{count}/{self._total} ({rate:.1f} {self._unit}/s{left})"
