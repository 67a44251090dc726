"""The scratch database: interrupts are interrupts, too little memory is a setting."""

import os
import signal
import threading

import pytest

from pipeline.comparison.join import Joined
from pipeline.fingerprints import Fingerprints
from pipeline.planner import Planner
from pipeline.scratch_database import scratch_database
from schemas.errors import SettingsError

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
    with (
        pytest.raises(KeyboardInterrupt),
        scratch_database("test", 64, setting="memory_mb") as database,
    ):
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
    with (
        pytest.raises(RuntimeError, match="of ours"),
        scratch_database("test", 64, setting="memory_mb"),
    ):
        raise RuntimeError("of ours")


def test_too_little_memory_is_a_setting_also_where_rows_are_streamed():
    for fails in (
        lambda database: database.execute("select list(range) from range(1000000)"),
        # Arrow, which reads the batches, makes an OSError of it.
        lambda database: (_ for _ in ()).throw(OSError("Out of Memory Error: why\nand more")),
    ):
        with (
            pytest.raises(SettingsError, match=r"^memory_mb 4 is too little .*\): give more$"),
            scratch_database("test", 4, setting="memory_mb") as database,
        ):
            fails(database)
    with pytest.raises(OSError, match="of ours"), scratch_database("test", 4, setting="memory_mb"):
        raise OSError("of ours")


def test_a_full_disk_is_no_lack_of_memory():
    with (
        pytest.raises(SettingsError, match=r"^no room is left in .* memory_mb 64 .* TMPDIR"),
        scratch_database("test", 64, setting="memory_mb") as database,
    ):
        database.execute("set max_temp_directory_size = '1MiB'")
        database.execute(
            "create table t as select md5(range::varchar) id from range(1500000) order by id"
        )


@pytest.mark.parametrize("memory_mb, threads", [(64, 1), (4, 1), (192, 3), (1024, 7)])
def test_no_thread_has_too_little_memory(memory_mb, threads):
    with scratch_database("test", memory_mb, 7, setting="memory_mb") as database:
        ((found,),) = database.sql("select current_setting('threads')").fetchall()
    assert found == threads
