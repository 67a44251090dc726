"""Structured logs: one JSON object a line, on stderr and beside the manifest of a run.

A line is {"time", "level", "logger", "message"}, the run's id in the log of a run, the fields of
an event, and the traceback where there is one. No line holds a secret.
"""

import json
import logging
import threading
from collections import deque
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from pipeline.files import write_bytes
from pipeline.parts import RUNS
from pipeline.secrets import HidingFormatter, hide_all_secrets, hide_secrets
from schemas.errors import SegmillError

# What a run tells of itself. Apart from the tree of loggers: it must reach the run's own log
# whatever level the process logs at, and not the terminal of whoever calls us from Python.
EVENTS: Final = logging.getLogger("segmill.run")
EVENTS.setLevel(logging.INFO)
EVENTS.propagate = False

_WRITE_EVERY_S: Final = 30.0  # what a run that is killed loses of its log, at most
_MOST_BYTES: Final = 4 * 2**20

logger = logging.getLogger(__name__)


def tell(message: str, **fields: Any) -> None:
    """Log one event of a run, with whatever a program may want to read of it."""
    EVENTS.info(message, extra={"fields": fields})


class JsonFormatter(HidingFormatter):
    """Formats a record as one line of JSON without secrets; `constants` are in every line."""

    def __init__(self, **constants: Any) -> None:
        super().__init__()
        self._constants = constants

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC)
        values = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": hide_secrets(record.getMessage()),
            **self._constants,
            # Before they are quoted: a quoted secret would not be found.
            **hide_all_secrets(getattr(record, "fields", {})),
        }
        if record.exc_info:
            values["traceback"] = hide_secrets(self.formatException(record.exc_info))
        return json.dumps(values, default=str)


class RunLog(logging.Handler):
    """Collects events and log records of this process while a run has the dataset.

    _runs/<run_id>/log.jsonl is written anew every half minute and at the end: stores cannot
    append. Of a log that grows too long the oldest lines are left out, and counted.
    """

    def __init__(self, dataset: str, run_id: str) -> None:
        super().__init__(logging.INFO)
        self._dataset = dataset
        self._path = f"{RUNS}/{run_id}/log.jsonl"
        self._lines: deque[str] = deque()
        self._bytes = self._dropped = self._seen = self._written = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_written, name="run-log", daemon=True)
        self.setFormatter(JsonFormatter(run_id=run_id))

    def __enter__(self) -> Self:
        for source in (EVENTS, logging.getLogger()):
            source.addHandler(self)
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
        for source in (EVENTS, logging.getLogger()):
            source.removeHandler(self)
        self._write()
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; called with the lock of the handler held."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._lines.append(line)
        self._seen += 1
        self._bytes += len(line)
        while self._bytes > _MOST_BYTES and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft())
            self._dropped += 1

    def _keep_written(self) -> None:
        while not self._stop.wait(_WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        self.acquire()
        lines, seen, dropped = list(self._lines), self._seen, self._dropped
        self.release()
        if seen == self._written:
            return
        if dropped:
            lines.insert(0, json.dumps({"message": "older lines were left out", "lines": dropped}))
        try:
            write_bytes(self._dataset, self._path, "".join(f"{line}\n" for line in lines).encode())
            self._written = seen
        except SegmillError as trouble:  # a log never ends a run
            logger.warning("the log of the run could not be written: %s", trouble)
