"""Structured logs: lines of JSON on stderr and beside the manifest, without secrets."""

import json
import logging

import pytest

import pipeline.run_log
from jobs.cli import main
from jobs.progress import RecordedProgress, Silent
from pipeline.files import read_bytes
from pipeline.run_log import EVENTS, JsonFormatter, RunLog, tell

SECRET = "plantedLogSecret0123"


@pytest.fixture(autouse=True)
def events_as_they_were():
    handlers = EVENTS.handlers[:]
    yield
    EVENTS.handlers[:] = handlers


@pytest.fixture
def dataset(tmp_path):
    return str(tmp_path / "labels")


def lines_of(dataset, run_id="run"):
    return [
        json.loads(line)
        for line in read_bytes(dataset, f"_runs/{run_id}/log.jsonl").split(b"\n")[:-1]
    ]


def test_the_log_of_a_run_holds_its_events_and_what_libraries_warn_of(dataset):
    tell("before")
    with RunLog(dataset, "run"):
        tell("at work", done={"decode": 3})
        logging.getLogger("some.library").warning("slow %s", "store")
        logging.getLogger("some.library").debug("chatter")
    tell("after")
    first, second = lines_of(dataset)
    assert (first["message"], first["done"], first["run_id"]) == ("at work", {"decode": 3}, "run")
    assert (second["level"], second["logger"]) == ("WARNING", "some.library")
    assert second["message"] == "slow store" and second["time"].endswith("Z")


def test_events_do_not_reach_the_terminal_of_a_caller_from_python(dataset, capsys):
    logging.basicConfig(level="DEBUG", force=True)
    with RunLog(dataset, "run"):
        tell("at work")
    assert capsys.readouterr().err == ""


def test_no_line_holds_a_secret(dataset, monkeypatch):
    # Quotes and a backslash, which JSON writes otherwise than they are.
    secret = f'{SECRET}"\\é'
    monkeypatch.setenv("STORE_SECRET", secret)
    with RunLog(dataset, "run"):
        tell(f"key {secret}", where=f"s3://me:{SECRET}@bucket/x", key=secret)
        try:
            raise ValueError(f"refused {secret}")
        except ValueError:
            logging.getLogger("some.library").exception("failed with %s", secret)
    text = read_bytes(dataset, "_runs/run/log.jsonl").decode()
    assert text.count("***") == 4 and "ValueError" in text
    assert SECRET not in text


def test_of_a_log_that_grows_too_long_the_newest_lines_stay(dataset, monkeypatch):
    monkeypatch.setattr(pipeline.run_log, "_MOST_BYTES", 1000)
    with RunLog(dataset, "run"):
        for number in range(100):
            tell(f"line {number}")
    first, *kept = lines_of(dataset)
    assert first["lines"] + len(kept) == 100 and kept[-1]["message"] == "line 99"
    assert 1 < len(kept) < 15


def test_a_log_is_written_while_the_run_goes_on(dataset, monkeypatch):
    monkeypatch.setattr(pipeline.run_log, "_WRITE_EVERY_S", 0.01)
    with RunLog(dataset, "run") as log:
        tell("at work")
        log._thread.join(0.3)
        assert [line["message"] for line in lines_of(dataset)] == ["at work"]


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with RunLog(str(tmp_path / "file"), "run"):
        tell("at work")
    assert "the log of the run could not be written" in caplog.text


def test_progress_is_told_to_the_log(dataset, monkeypatch):
    monkeypatch.setattr("jobs.progress._LINE_EVERY_S", 0.0)
    with RunLog(dataset, "run"), RecordedProgress(Silent()) as progress:
        progress.say("listing photos")
        progress.start(["decode", "write"], 10)
        progress.update({"decode": 4})
    said, started, updated = lines_of(dataset)
    assert said["message"] == "listing photos"
    assert (started["stages"], started["total"]) == (["decode", "write"], 10)
    assert updated["done"] == {"decode": 4}


def test_a_json_line_is_one_line():
    record = logging.LogRecord("a", logging.ERROR, "", 0, "two\nlines", (), None)
    assert json.loads(JsonFormatter(run_id="r").format(record))["message"] == "two\nlines"
    assert "\n" not in JsonFormatter().format(record)


def test_with_json_every_line_on_stderr_is_an_object(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEGMILL_LOG_FORMAT", "json")
    (tmp_path / "classes.txt").write_text("cat\n")
    arguments = ["annotate", str(tmp_path / "gone"), "--output", str(tmp_path / "labels")]
    assert main([*arguments, "--vocabulary", str(tmp_path / "classes.txt")]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"][:10] for line in lines[:2]] == [
        "the run ha",
        "listing " + str(tmp_path)[:2],
    ]
    assert lines[-1]["exit_code"] == 2 and "it does not exist" in lines[-1]["message"]
    # The same in the log of the run, but for the complaint, with how it ended.
    (log,) = (tmp_path / "labels" / "_runs").glob("*/log.jsonl")
    ended = json.loads(log.read_text().splitlines()[-1])
    assert ended["outcome"] == "failed" and "it does not exist" in ended["error"]


def test_a_wrong_log_format_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("SEGMILL_LOG_FORMAT", "xml")
    assert main(["models"]) == 2
    assert "SEGMILL_LOG_FORMAT is 'xml'; it may be text or json" in capsys.readouterr().err
