"""The scratch database: interrupts are interrupts."""

import os
import signal
import threading

import pytest

from pipeline.comparison.join import Joined
from pipeline.fingerprints import Fingerprints
from pipeline.planner import Planner
from pipeline.scratch_database import scratch_database

LONG = "select count(*) from range(4000000000) a where a.range % 7 = 3"


@pytest.fixture
def interrupted():
    """SIGTERM in half a second, with a handler as `jobs.cli` sets it."""

    def handler(number, frame):
        raise KeyboardInterrupt

    # Not SIGINT: a process that was started in the background may have been told to ignore it.
    kept = signal.signal(signal.SIGTERM, handler)
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    yield
    timer.cancel()
    signal.signal(signal.SIGTERM, kept)


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_during_a_query_is_one():
    # Found by chaos: DuckDB raises a RuntimeError instead, and the run ended with a traceback.
    with pytest.raises(KeyboardInterrupt), scratch_database("test", 64) as database:
        database.sql(LONG).fetchall()


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_while_a_run_is_planned_is_one():
    prints = Fingerprints(decode="d", proposal="p", embedding="e", label="l")
    with pytest.raises(KeyboardInterrupt), Planner(prints, 64, 1) as planner:
        planner._database.sql(LONG).to_arrow_reader(100).read_all()


def test_an_error_while_versions_are_joined_closes_the_database(monkeypatch):
    class Broken:
        manifest = type("Manifest", (), {"images": ()})

    joined = Joined(Broken(), Broken(), 64)
    monkeypatch.setattr(joined, "_read", lambda *_, **__: (_ for _ in [1 / 0]))
    with pytest.raises(ZeroDivisionError):
        joined.__enter__()
    with pytest.raises(Exception, match=r"[Cc]losed"):
        joined._database.sql("select 1").fetchall()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="of ours"), scratch_database("test", 64):
        raise RuntimeError("of ours")
