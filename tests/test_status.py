"""`segmill status`: what people and monitors are told of a dataset, on a disk and on S3."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from jobs.cli import main
from jobs.status import status
from pipeline.dataset import publish
from pipeline.files import write_bytes
from pipeline.lock import DatasetLock, Holder, new_run_id
from pipeline.parts import write_part
from pipeline.run_records import Recorder
from schemas.annotation import ANNOTATED, table_from_rows
from schemas.errors import OutputError, SegmillError
from schemas.runs import RunEnd, RunStart
from schemas.status_config import StatusConfig
from tests.test_upkeep import labelled, manifest_of, quarantined, write


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def dataset(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "labels")
    import s3fs

    request.getfixturevalue("s3_server")
    bucket = f"status-{abs(hash(request.node.name))}-{time.monotonic_ns()}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/labels"


def look(dataset, **settings):
    return status(StatusConfig(dataset=dataset, **settings))


def ended(dataset, hours_ago, outcome="published", error=None, **changes):
    """Leave the record of a run that ended so long ago, and return its id."""
    then = datetime.now(UTC) - timedelta(hours=hours_ago)
    run_id = f"{then:%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}"
    end = RunEnd(
        run_id=run_id, started=then, ended=then, outcome=outcome, version=1, error=error, **changes
    )
    write_bytes(dataset, f"_runs/{run_id}/end.json", end.model_dump_json().encode())
    return run_id


def test_a_dataset_that_is_up_to_date_is_well(dataset):
    publish(dataset, manifest_of(write(dataset, labelled("a"), labelled("b"))))
    with DatasetLock(dataset, run_id := new_run_id(), 60.0), Recorder(dataset, run_id) as recorder:
        recorder.succeed(1, published=True)
    result = look(dataset, max_age_hours=1.0)
    assert (result.manifest.version, result.manifest.counts.labelled) == (1, 2)
    assert [(run.run_id, run.state) for run in result.runs] == [(run_id, "published")]
    assert (result.lock, result.finished, result.left, result.problems) == (None, 0, 0, ())


def test_a_run_at_work_tells_what_is_left(dataset):
    with DatasetLock(dataset, run_id := new_run_id(), 60.0), Recorder(dataset, run_id) as recorder:
        recorder.plan(images=5, to_do=4)
        write_part(dataset, run_id, table_from_rows([labelled("a"), quarantined("b")], ANNOTATED))
        result = look(dataset)
        recorder.succeed(1, published=True)
    assert [(run.state, run.to_do) for run in result.runs] == [("running", 4)]
    assert (result.finished, result.left) == (2, 2)
    assert result.lock.holder.run_id == run_id and result.lock.is_alive
    assert 0 <= result.lock.silent_s < 30
    # Nothing has ended, so nothing has ended badly.
    assert result.problems == ()


def test_a_run_that_plans_is_known_by_its_lock(dataset):
    ended(dataset, hours_ago=2)
    with DatasetLock(dataset, "20990101T000000Z-000000", 60.0):
        result = look(dataset)
    assert [run.state for run in result.runs] == ["running", "published"]
    assert (result.left, result.problems) == (None, ())


@pytest.mark.parametrize("error, state", [(SegmillError("no  store"), "failed"),
                                          (KeyboardInterrupt(), "interrupted")])  # fmt: skip
def test_a_last_run_that_did_not_end_well_is_a_problem(dataset, error, state):
    publish(dataset, manifest_of(write(dataset, labelled("a"))))
    ended(dataset, hours_ago=2)
    with pytest.raises(type(error)), Recorder(dataset, run_id := new_run_id()) as recorder:
        recorder.plan(images=9, to_do=8)
        raise error
    result = look(dataset)
    assert [run.state for run in result.runs] == [state, "published"]
    assert (result.left, result.runs[0].to_do) == (8, 8)
    (problem,) = result.problems
    assert problem == f"the last run, {run_id}, was {state}" + (
        ": no store" if state == "failed" else ""
    )


def test_a_run_that_was_killed_is_known_by_its_lock(dataset):
    """On its own machine at once; elsewhere when its lock is silent for its time to live."""
    start = RunStart(run_id="r", started=datetime.now(UTC), images=3, to_do=3)
    write_bytes(dataset, "_runs/r/start.json", start.model_dump_json().encode())
    code = (
        "import os, sys; from pipeline.lock import DatasetLock; "
        "DatasetLock(sys.argv[1], 'r', 600.0).__enter__(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, dataset], check=False).returncode == -9
    assert [run.state for run in look(dataset).runs] == ["killed"]
    assert look(dataset).problems == ("the last run, r, was killed",)
    elsewhere = {"host": "elsewhere", "process": "other", "pid": 1, "since": 0.0}
    for ttl_s, state in ((600.0, "running"), (0.01, "killed")):
        holder = Holder(run_id="r", ttl_s=ttl_s, **elsewhere)
        write_bytes(dataset, "_lock/000001.json", holder.model_dump_json().encode())
        time.sleep(1.1)  # the clock of S3 has whole seconds
        assert [run.state for run in look(dataset).runs] == [state]


def test_a_run_that_another_came_after_was_killed(dataset):
    run_id = "20260101T000000Z-000000"
    start = RunStart(run_id=run_id, started=datetime.now(UTC), images=3, to_do=3)
    write_bytes(dataset, f"_runs/{run_id}/start.json", start.model_dump_json().encode())
    assert look(dataset).problems == (f"the last run, {run_id}, was killed",)
    ended(dataset, hours_ago=0)
    assert look(dataset).problems == ()


def test_a_schedule_that_has_stopped_is_stale(dataset):
    publish(dataset, manifest_of(write(dataset, labelled("a")), age_hours=100))
    assert "100:0" in look(dataset, max_age_hours=26.0).problems[0].replace("4 days, 4:0", "100:0")
    ended(dataset, hours_ago=30, outcome="unchanged")
    assert len(look(dataset, max_age_hours=26.0).problems) == 1
    assert look(dataset, max_age_hours=31.0).problems == look(dataset).problems == ()
    # A run that found nothing to do shows that the schedule is alive.
    ended(dataset, hours_ago=2, outcome="unchanged")
    assert look(dataset, max_age_hours=26.0).problems == ()


@pytest.mark.parametrize("command", ["correct", "relabel"])
def test_what_reads_no_source_hides_no_run_that_failed(dataset, command):
    publish(dataset, manifest_of(write(dataset, labelled("a")), age_hours=100))
    night = ended(dataset, hours_ago=6, outcome="failed", error="no store")
    start = RunStart(run_id=night, started=datetime.now(UTC), images=9, to_do=8)
    write_bytes(dataset, f"_runs/{night}/start.json", start.model_dump_json().encode())
    by_hand = ended(dataset, hours_ago=1, command=command)
    more = write(dataset, labelled("a"), labelled("b"))
    publish(dataset, manifest_of(more, version=2, run_id=by_hand, age_hours=1))
    result = look(dataset, max_age_hours=26.0)
    assert [(run.command, run.state) for run in result.runs] == [
        (command, "published"), ("annotate", "failed"),
    ]  # fmt: skip
    assert result.left == 8
    assert result.manifest.version == 2
    # There is no record of the run that made version 1.
    assert result.age_s == pytest.approx(100 * 3600, abs=60)
    first, second = result.problems
    assert first == f"the last run, {night}, was failed: no store"
    assert "no annotation has ended well for 26 h; the last time was 4 days" in second
    ended(dataset, hours_ago=0)
    ended(dataset, hours_ago=-1, outcome="failed", command=command)
    assert (look(dataset, max_age_hours=26.0).problems, look(dataset).left) == ((), 0)


def test_a_vacuum_is_no_run_that_must_end_well(dataset):
    ended(dataset, hours_ago=2)
    with DatasetLock(dataset, f"vacuum-{new_run_id()}", 60.0, "vacuum"):
        result = look(dataset)
    assert [(run.command, run.state) for run in result.runs] == [
        ("vacuum", "running"), ("annotate", "published"),
    ]  # fmt: skip
    assert (result.left, result.problems) == (0, ())


def test_a_vacuum_that_was_killed_is_shown_and_no_problem(dataset):
    publish(dataset, manifest_of(write(dataset, labelled("a"))))
    ended(dataset, hours_ago=2)
    code = (
        "import os, sys, jobs.vacuum as job; from schemas.upkeep_config import VacuumConfig; "
        "job.delete_files = lambda *_: os.kill(os.getpid(), 9); "
        "job.vacuum(VacuumConfig(dataset=sys.argv[1], delete=True))"
    )
    assert subprocess.run([sys.executable, "-c", code, dataset], check=False).returncode == -9
    result = look(dataset)
    assert (result.runs[0].command, result.runs[0].state) == ("vacuum", "killed")
    assert (result.left, result.problems) == (0, ())


def test_what_is_shown_does_not_decide_what_is_well(dataset):
    publish(dataset, manifest_of(write(dataset, labelled("a")), age_hours=100))
    ended(dataset, hours_ago=24, outcome="unchanged")
    failed = [ended(dataset, hours_ago=hours, outcome="failed") for hours in range(12, 2, -1)]
    with DatasetLock(dataset, run_id := new_run_id(), 60.0), Recorder(dataset, run_id) as recorder:
        recorder.plan(images=5, to_do=4)
        result = look(dataset, runs=1, max_age_hours=26.0)
    assert [run.run_id for run in result.runs] == [run_id]
    assert result.problems == (f"the last run, {failed[-1]}, was failed",)
    assert result.age_s == pytest.approx(24 * 3600, abs=60)


def test_too_many_quarantined_images_are_a_problem(dataset):
    publish(dataset, manifest_of(write(dataset, labelled("a"), quarantined("b"))))
    assert "1 of 2 images are quarantined" in look(dataset).problems[0]
    assert look(dataset, max_bad_fraction=0.5).problems == ()


def test_nothing_at_all_is_an_error_not_a_state(dataset):
    with pytest.raises(OutputError, match="holds no dataset, and no run of one"):
        look(dataset)


def test_a_monitor_reads_one_line_and_an_exit_code(tmp_path, capsys):
    dataset = str(tmp_path / "labels")
    publish(dataset, manifest_of(write(dataset, labelled("a"), quarantined("b")), age_hours=3))
    failed = ended(dataset, hours_ago=1, outcome="failed", error="no [store]")
    with DatasetLock(dataset, "r", 60.0):
        arguments = ["status", dataset, "--max-age-hours", "2"]
        assert main([*arguments, "--max-bad-fraction", "0.5"]) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    values = json.loads(line)
    assert (values["ok"], values["version"], values["images"]) == (False, 1, 2)
    assert (values["labelled"], values["quarantined"], values["left"]) == (1, 1, None)
    assert values["age_hours"] == pytest.approx(3, abs=0.1)
    assert len(values["problems"]) == 2 and values["lock"]["alive"]
    assert [run["state"] for run in values["runs"]] == ["running", "failed"]
    assert values["runs"][1] | {"started": 0, "ended": 0} == {
        "run_id": failed, "command": "annotate", "state": "failed", "started": 0, "ended": 0,
        "to_do": None, "error": "no [store]",
    }  # fmt: skip
    assert failed in err and "no [store]" in err and "the lock is held by r" in err
    ended(dataset, hours_ago=0, outcome="unchanged")
    assert main([*arguments, "--max-bad-fraction", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert main(["status", str(tmp_path / "none")]) == 2
