"""What a running command shows where its output is no terminal."""

import time
from io import StringIO

import pytest
from rich.console import Console

import jobs.progress
from jobs.progress import TerminalProgress


@pytest.fixture
def console():
    return Console(file=StringIO(), width=200)


@pytest.fixture
def every_line(monkeypatch):
    monkeypatch.setattr(jobs.progress, "_LINE_EVERY_S", 0.0)


def lines(console):
    return console.file.getvalue().splitlines()


def test_a_run_that_goes_on_counts_its_own_steps_for_the_rate(console, every_line):
    with TerminalProgress(console) as progress:
        progress.start(["train"], 1000, unit="steps", done=900)
        progress.update({"train": 900}, "loss 3.000")
        time.sleep(0.2)
        progress.update({"train": 950}, "loss 2.000")
    first, second = lines(console)
    assert first == "train 900/1000 (0.0 steps/s), loss 3.000"
    rate, eta = float(second.split("(")[1].split()[0]), float(second.split("ETA ")[1].split()[0])
    assert 0 < rate <= 250 and second.startswith("train 950/1000 (")
    assert eta == pytest.approx(50 / rate, abs=1) and second.endswith("s), loss 2.000")


def test_images_are_counted_without_a_note(console, every_line):
    with TerminalProgress(console) as progress:
        progress.start(["propose"], 4)
        progress.update({"propose": 9})  # a retried batch is counted twice
    assert lines(console)[0].startswith("propose 4/4 (")
    assert "images/s" in lines(console)[0] and "," not in lines(console)[0].split("ETA 0 s)")[1]
