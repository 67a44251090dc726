"""One run of the command in a process of its own, struck at its moments."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, Self

from tests.chaos.ground import Ground
from tests.chaos.proxy import Request
from tests.chaos.schedule import Disturbed, Moment, Schedule, Strike
from tests.processes import Process, await_end, family

# A driver that has neither ended nor failed by then hangs; this is a busy small machine.
LIMIT_S: Final = float(os.environ.get("CHAOS_LIMIT_S", "300"))
_LOOK_EVERY_S: Final = 0.005
_FAMILY_EVERY_S: Final = 0.25
_END_OF_FAMILY_S: Final = 60.0
_PAUSE_AT_MOST_S: Final = 40.0

# How Ray titles its processes, and the executables of its daemons.
_TITLES: Final = {
    "propose": re.compile(r"ray::MapWorker\(MapBatches\(Propose\)\)"),
    "classify": re.compile(r"ray::MapWorker\(MapBatches\(Classify\)\)"),
    "board": re.compile(r"ray::_Board"),
    "worker": re.compile(r"ray::(?!MapWorker|_Board|DashboardAgent|RuntimeEnvAgent)"),
    "raylet": re.compile(r"\S*/raylet "),
    "gcs": re.compile(r"\S*/gcs_server "),
}
_AGENTS: Final = re.compile(r"ray::(DashboardAgent|RuntimeEnvAgent)|/agent/main\.py|/agent\.py")
_SIGNALS: Final = {
    "driver": signal.SIGKILL,
    "terminate": signal.SIGTERM,
    "interrupt": signal.SIGINT,
}


@dataclass
class Outcome:
    """How a run ended and what it was seen to do."""

    code: int | None = None  # None: it hung and was ended
    result: dict[str, Any] = field(default_factory=dict)  # what a finished run prints
    noise: list[str] = field(default_factory=list)  # what else is on its stdout
    stderr: str = ""
    done: Counter[str] = field(default_factory=Counter)  # images that left each stage
    struck: list[str] = field(default_factory=list)
    writers: list[int | None] = field(default_factory=list)  # exit codes of second writers
    leftover: list[str] = field(default_factory=list)  # what Ray did not end with its driver
    seconds: float = 0.0


class Run:
    """Starts the command, strikes it, and waits for its end and that of all it has started."""

    def __init__(
        self,
        ground: Ground,
        output: str,
        name: str,
        disturbed: Disturbed,
        schedule: Schedule,
        rng: Random,
    ) -> None:
        self.outcome = Outcome()
        self._ground, self._output, self._name = ground, output, name
        self._settings, self._stages = dict(schedule.settings), schedule.stages
        self._rng = rng
        self._due = [_Due(strike) for strike in disturbed.strikes]
        self._log = ProgressLog(ground.folder / f"{name}.log")
        self._log.path.unlink(missing_ok=True)
        self._requests: Counter[Moment] = Counter()
        self._before: dict[Moment, int] = {}  # files of earlier runs
        self._lock = threading.Lock()  # strikes come from this thread and from the proxy's
        self._family: set[Process] = set()
        self._others: list[subprocess.Popen[bytes]] = []
        self._paused_until: float | None = None

    def result(self) -> Outcome:
        """Do all of it."""
        started = time.monotonic()
        if self._ground.proxy is not None:
            self._ground.proxy.watcher = self._on_request
        with open(self._log.path.with_suffix(".out"), "wb") as out, \
             open(self._log.path.with_suffix(".err"), "wb") as err:  # fmt: skip
            self._process = subprocess.Popen(
                self._command(self._log.path),
                env=self._ground.environment(), stdout=out, stderr=err,
            )  # fmt: skip
            self.outcome.code = self._watch(started + LIMIT_S)
        if self._ground.proxy is not None:
            self._ground.proxy.watcher = None
        self._end_all()
        self.outcome.done = self._log.done
        self.outcome.stderr = self._log.path.with_suffix(".err").read_text(errors="replace")
        printed = self._log.path.with_suffix(".out").read_text().strip()
        lines = printed.splitlines()
        if self.outcome.code in (0, 1) and lines and lines[-1].startswith("{"):
            self.outcome.result = json.loads(lines.pop())
        self.outcome.noise = lines
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _watch(self, deadline: float) -> int | None:
        next_family = 0.0
        while (code := self._process.poll()) is None:
            now = time.monotonic()
            if now > deadline:
                self._note_family()
                return None
            if now > next_family:
                self._note_family()
                next_family = now + _FAMILY_EVERY_S
            if self._paused_until is not None and (
                now > self._paused_until or all(o.poll() is not None for o in self._others)
            ):
                self._process.send_signal(signal.SIGCONT)
                self._paused_until = None
            self._log.read()
            for due in self._due:
                if due.has_come(self._seen):
                    self._strike(due)
            time.sleep(_LOOK_EVERY_S)
        self._log.read()
        return code

    def _seen(self, moment: Moment) -> int:
        """Return how often what the moment waits for was seen."""
        if moment.kind == "said":
            return sum(line.startswith(moment.what) for line in self._log.said)
        if moment.kind == "done":
            return self._log.done[moment.what]
        if not self._log.said:
            return 0  # nothing of ours is at work yet
        if moment.kind == "files" and self._ground.store == "disk":
            pattern = re.compile(moment.what)
            fits = sum(bool(pattern.match(path)) for path in _files(Path(self._output)))
            return fits - self._before.setdefault(moment, fits)
        return self._requests[moment]

    def _on_request(self, request: Request, carried_out: bool) -> None:
        """Strike while the proxy holds a request."""
        path = request.key.removeprefix(self._output.removeprefix("s3://") + "/")
        for due in self._due:
            moment = due.strike.moment
            if moment.kind == "files":
                moves = request.method == "PUT" and carried_out
                fits = moves and re.match(moment.what.removesuffix(r"\.draft$"), path)
            else:
                fits = moment.kind == "request" and moment.after == carried_out
                fits = fits and re.match(moment.what, f"{request.method} {path}")
            if fits:
                with self._lock:
                    self._requests[moment] += 1
                if due.has_come(self._seen):
                    self._strike(due)

    def _strike(self, due: "_Due") -> None:
        with self._lock:
            if due.is_done or self._process.poll() is not None:
                return
            what = due.strike.what
            self._note_family()
            if what in _SIGNALS:
                self._process.send_signal(_SIGNALS[what])
                due.is_done = True
            elif what in ("second", "pause"):
                if what == "pause":
                    self._process.send_signal(signal.SIGSTOP)
                    self._paused_until = time.monotonic() + _PAUSE_AT_MOST_S
                self._start_another()
                due.is_done = True
            else:
                due.is_done = self._kill(what)
            if due.is_done:
                self.outcome.struck.append(f"{what} at {self._where()}")

    def _kill(self, what: str) -> bool:
        found = [member for member in self._family if _TITLES[what].match(member.title)]
        if not found:
            return False  # not there yet: tried again until the run ends
        victim = self._rng.choice(sorted(found, key=lambda process: process.pid))
        self.outcome.struck.append(victim.title[:60])
        victim.send(signal.SIGKILL)
        return True

    def _start_another(self) -> None:
        log = self._ground.folder / f"{self._name}-second{len(self._others)}.log"
        command = self._command(log)
        environment = self._ground.environment()
        with open(log.with_suffix(".err"), "wb") as err:
            other = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=err
            )
        self._others.append(other)

    def _command(self, log: Path) -> list[str]:
        return self._ground.command(self._output, log, self._settings, self._stages)

    def _where(self) -> str:
        last = self._log.said[-1][:40] if self._log.said else "the start"
        return f"{last!r} {dict(self._log.done)}"

    def _note_family(self) -> None:
        roots = [self._process.pid, *(other.pid for other in self._others)]
        self._family |= {member for root in roots for member in family(root)}

    def _end_all(self) -> None:
        """Wait for what a killed driver leaves, which Ray ends, and for second writers."""
        if self.outcome.code is None:
            await_end(self._family, 0.0)
            self._process.wait()
        deadline = time.monotonic() + LIMIT_S
        for other in self._others:
            while other.poll() is None and time.monotonic() < deadline:
                self._note_family()
                time.sleep(_FAMILY_EVERY_S)
            self.outcome.writers.append(other.poll())
        # Ray's agents look for their raylet only now and then; they do not touch the dataset.
        members = {
            member: title
            for member in self._family
            if (title := member.title) and not _AGENTS.search(title)
        }
        left = await_end(members, _END_OF_FAMILY_S)
        await_end(self._family, 0.0)
        self.outcome.leftover = [members.get(member, "?")[:300] for member in left]
        for other in self._others:
            other.wait()


@dataclass
class _Due:
    """A strike that waits for its moment."""

    strike: Strike
    is_done: bool = False
    since: float | None = None  # when the moment came, on the monotonic clock

    def has_come(self, seen: Any) -> bool:
        if self.is_done:
            return False
        moment = self.strike.moment
        if self.since is None and seen(moment) >= moment.count:
            self.since = time.monotonic()
        return self.since is not None and time.monotonic() - self.since >= moment.delay_s


class ProgressLog:
    """The progress of a run, read from its file as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self._offset = 0
        self._flow: Counter[str] = Counter()  # of flows that came before
        self._board: Counter[str] = Counter()  # of boards that were killed
        self._last: dict[str, int] = {}

    @property
    def done(self) -> Counter[str]:
        return self._flow + self._board + Counter(self._last)

    def read(self) -> Self:
        if not self.path.exists():
            return self
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
        return self

    def _take(self, line: dict[str, Any]) -> None:
        if "said" in line:
            self.said.append(line["said"])
        elif "stages" in line:
            self._flow, self._board, self._last = self.done, Counter(), {}
        elif sum(line["done"].values()) < sum(self._last.values()):
            self._board += Counter(self._last)  # a new board counts from nothing
            self._last = line["done"]
        else:
            self._last = line["done"]


def _files(folder: Path) -> Iterable[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(parent, name), folder)
