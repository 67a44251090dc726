"""The processes that a process has started, found in /proc."""

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process; a number that was given again to a later one is not the same."""

    pid: int
    started: int  # clock ticks since boot

    @property
    def is_alive(self) -> bool:
        found = _read(self.pid)
        return found is not None and found[1] == self.started

    @property
    def title(self) -> str:
        """Its command line, which Ray's workers replace by what they do; empty when it is gone."""
        try:
            line = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return line.replace(b"\0", b" ").decode(errors="replace").strip()

    def send(self, number: int) -> None:
        """Send it a signal if it is still there."""
        if self.is_alive:
            os.kill(self.pid, number)


def family(root: int) -> set[Process]:
    """The process and all its descendants."""
    found = {int(entry): _read(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    parents = {pid: facts[0] for pid, facts in found.items() if facts is not None}
    members = {root} & set(parents)
    while grown := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= grown
    return {Process(pid, facts[1]) for pid in members if (facts := found[pid]) is not None}


def resident_bytes(pid: int | str = "self") -> int:
    """Return the memory that a process holds; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGESIZE")


def await_end(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait until all have ended; end those that have not, and return them."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while (left := [process for process in left if process.is_alive]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    for process in left:
        process.send(signal.SIGKILL)
    return left


def _read(pid: int) -> tuple[int, int] | None:
    """Return parent and start; None for what has ended, collected by its parent or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))
