"""One run at a time on a dataset: a lock that expires with its holder and is fenced by its number.

A lock is a file under _lock/, and the highest number counts. Taking it is creating the next
number, which the store lets one caller do (see files.create_bytes). The holder rewrites its own
file, again and again; whoever finds a lock watches whether that happens. No clocks are compared:
a lock that did not change while its own time to live went by here is given up by its holder. One
that wakes up again sees a higher number and stops (fencing), at the latest before it publishes.
"""

import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.files import (
    create_bytes,
    delete_files,
    list_facts,
    list_files,
    read_bytes,
    write_bytes,
)
from pipeline.storage import hide_secrets
from schemas.errors import LockedError, SegmillError
from schemas.runs import ANNOTATE

LOCKS: Final = "_lock"
_WATCH_EVERY_S: Final = 0.5

logger = logging.getLogger(__name__)


class Holder(BaseModel):
    """What a lock file says: who holds the dataset, and that it is still alive."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    command: str = ANNOTATE
    host: str
    process: str  # of this boot and process space; the same only on the holder's own machine
    pid: int
    started: int = 0  # when the process did, in the kernel's ticks since the boot; 0 if unknown
    since: float  # seconds since 1970, for people
    ttl_s: float
    beat: int = 0
    released: bool = False


@dataclass(frozen=True)
class Held:
    """A lock that was not given back: whose it is, and for how long it was not renewed."""

    holder: Holder
    silent_s: float | None  # by the clocks of store and reader; None where the store tells no time
    is_alive: bool


def read_lock(dataset: str) -> Held | None:
    """Return who holds a dataset, taking no part in it; None when nobody does.

    Unlike `DatasetLock`, which watches, this believes the clocks: it is for people and monitors.
    """
    facts = list_facts(dataset, LOCKS)
    paths = [path for path in facts if path.rpartition("/")[2][:-5].isdigit()]
    if not paths:
        return None
    newest = max(paths, key=lambda path: int(path.rpartition("/")[2][:-5]))
    holder = _read_holder(dataset, newest)
    if holder is None or holder.released:
        return None
    changed = facts[newest].changed
    silent_s = None if changed is None else max(0.0, time.time() - changed)
    expired = silent_s is not None and silent_s > holder.ttl_s
    return Held(holder, silent_s, is_alive=not expired and not _has_died(holder))


class DatasetLock:
    """Holds a dataset for a run, from entering the context to leaving it."""

    def __init__(self, dataset: str, run_id: str, ttl_s: float, command: str = ANNOTATE) -> None:
        self.number = 0
        self._dataset = dataset
        self._holder = Holder(
            run_id=run_id,
            command=command,
            host=socket.gethostname(),
            process=_process_space(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            since=time.time(),
            ttl_s=ttl_s,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="dataset-lock", daemon=True)

    def __enter__(self) -> Self:
        """Take the lock; raises LockedError when another run holds it, after watching it."""
        self.number = self._take()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if self._newest() == self.number:
                self._write(self._holder.model_copy(update={"released": True}))
        except SegmillError as trouble:  # it expires by itself; what happened inside counts
            logger.warning("the lock could not be released: %s", trouble)

    def check(self) -> None:
        """Raise LockedError when another run has taken the lock over (fencing)."""
        newest = self._newest()
        if newest != self.number:
            raise LockedError(
                f"another run took over {hide_secrets(self._dataset)} (lock {newest}), since this "
                "one was silent for too long; nothing is lost: what it finished is taken over"
            )

    def _take(self) -> int:
        while True:
            newest = self._newest()
            if newest:
                self._await_end(newest)
            data = self._holder.model_dump_json().encode()
            if create_bytes(self._dataset, _path(newest + 1), data):
                # Locks before it, and drafts of these that their writers left as they died.
                delete_files(
                    self._dataset,
                    [
                        path
                        for path in list_files(self._dataset, LOCKS)
                        if 0 < _number(path) <= newest
                    ],
                )
                return newest + 1

    def _await_end(self, number: int) -> None:
        """Return once a lock is released or dead; raises LockedError when it is alive."""
        first = found = self._read(number)
        started = time.monotonic()
        while found is not None and not found.released and not _has_died(found):
            if first is None or found.beat != first.beat:
                since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.since))
                raise LockedError(
                    f"{hide_secrets(self._dataset)} is held by run {found.run_id} on "
                    f"{found.host} (process {found.pid}, since {since}); wait for it to end, or "
                    "end it, and run again"
                )
            if time.monotonic() - started > found.ttl_s:
                return
            time.sleep(_WATCH_EVERY_S)
            found = self._read(number)

    def _read(self, number: int) -> Holder | None:
        return _read_holder(self._dataset, _path(number))

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        locks = [path for path in list_files(self._dataset, LOCKS) if path.endswith(".json")]
        return [_number(path) for path in locks]

    def _write(self, holder: Holder) -> None:
        write_bytes(self._dataset, _path(self.number), holder.model_dump_json().encode())

    def _renew(self) -> None:
        while not self._stop.wait(self._holder.ttl_s / 4):
            try:
                if self._newest() != self.number:
                    return  # fenced: `check` tells
                self._holder = self._holder.model_copy(update={"beat": self._holder.beat + 1})
                self._write(self._holder)
            except SegmillError as trouble:
                logger.warning("the lock could not be renewed: %s", trouble)


def new_run_id() -> str:
    """Return the id of a new run: its UTC start and six random digits."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"


def _read_holder(dataset: str, path: str) -> Holder | None:
    try:
        return Holder.model_validate_json(read_bytes(dataset, path))
    except (FileNotFoundError, ValidationError):
        return None


def _path(number: int) -> str:
    return f"{LOCKS}/{number:06d}.json"


def _number(path: str) -> int:
    """Return the number of a lock, or of a draft of it; 0 for any other file."""
    stem = path.rpartition("/")[2].partition(".")[0]
    return int(stem) if stem.isdigit() else 0


def _process_space() -> str:
    """Return what tells whether another process id means anything here; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _has_died(holder: Holder) -> bool:
    """Say whether the holder ran on this very machine and is gone, so that none need wait."""
    if not holder.process or holder.process != _process_space():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # The number may have been given to a later process; a clock that is set tells nothing of that.
    return holder.started != 0 and _started(holder.pid) != holder.started


def _started(pid: int) -> int:
    """Return when a process started, in the kernel's ticks since the boot; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])  # Z: not yet collected by its parent
