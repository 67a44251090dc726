"""The chaos harness, short: two schedules of different kinds; `make chaos` runs many."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.ground import Ground
from tests.chaos.proxy import faulty_store
from tests.chaos.readers import Reader
from tests.chaos.schedule import Disturbed, Moment, Schedule, Strike
from tests.chaos.trial import carry_out
from tests.servers import S3Server


@pytest.fixture(scope="module")
def disk() -> Iterator[Ground]:
    # Not pytest's folder: the paths of Ray's sockets would be too long.
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Ground(Path(folder), "disk")


@pytest.mark.ray
def test_ended_and_killed_drivers_leave_what_they_had_finished(disk: Ground) -> None:
    part = Moment("files", "_runs/.*/parts/")
    runs = (Disturbed((Strike("terminate", part),)), Disturbed((Strike("driver", part),)))
    verdict = carry_out(Schedule(1, "disk", runs), disk)
    assert (verdict.divergences, verdict.torn_reads) == ([], [])
    ends = [story for story in verdict.story if "exit" in story]
    assert ["exit 143" in ends[0], "exit -9" in ends[1], "exit 0" in ends[2]] == [True] * 3
    assert verdict.reads > 0
    assert verdict.work.needed == len(disk.images[0])
    # A part was recorded by each, and nothing of it was done again.
    assert (verdict.work.runs, verdict.work.redone) == (3, 0)


@pytest.mark.ray
@pytest.mark.s3
def test_a_store_in_trouble_and_a_killed_actor_change_nothing(
    disk: Ground, s3_server: S3Server
) -> None:
    assert os.environ["AWS_ENDPOINT_URL"] == s3_server.endpoint
    actor = Strike("classify", Moment("done", "classify", count=5))
    # Above all puts that were carried out although their answer was an error or none.
    faults = ("error_after", "reset_after", "truncated", "slow_down")
    disturbed = Disturbed((actor,), fault_rate=0.25, faults=faults)
    with faulty_store(s3_server.endpoint) as proxy:
        (disk.folder / "s3").mkdir()
        ground = Ground(disk.folder / "s3", "s3", proxy, disk)
        verdict = carry_out(Schedule(2, "s3", (disturbed,)), ground)
    assert (verdict.divergences, verdict.torn_reads) == ([], [])
    story = "\n".join(verdict.story)
    assert "reset_after PUT" in story or "error_after PUT" in story
    assert "Classify" in story and "exit 0" in story
    assert verdict.work.needed == len(ground.images[0])


def test_a_reader_tells_what_is_torn(tmp_path: Path) -> None:
    rows = pa.table({"image_id": ["a", "b"], "status": ["labelled", "quarantined"]})
    pq.write_table(rows, tmp_path / "part.parquet")
    data = (tmp_path / "part.parquet").read_bytes()
    whole = {"path": "part.parquet", "sha256": hashlib.sha256(data).hexdigest(), "rows": 2}
    counts = {"inventory": 2, "labelled": 1, "quarantined": 1}

    def torn(number: int = 1, **manifest: Any) -> str:
        shutil.rmtree(tmp_path / "_manifest", ignore_errors=True)
        (tmp_path / "_manifest").mkdir()
        text = json.dumps({"counts": counts, "images": [whole], "embeddings": [], **manifest})
        (tmp_path / "_manifest" / f"v{number:06d}.json").write_text(text)
        with Reader(str(tmp_path), seed=0) as reader:
            deadline = time.monotonic() + 20
            while not (reader.torn or reader.reads) and time.monotonic() < deadline:
                time.sleep(0.05)
        return " ".join(reader.torn)

    assert torn() == ""
    assert "part.parquet is not what" in torn(images=[{**whole, "sha256": "0"}])
    assert "No such file" in torn(images=[{**whole, "path": "absent.parquet"}])
    assert "4 rows of 2 images" in torn(images=[whole, whole])
    assert "the manifest tells [3, 1, 1]" in torn(counts={**counts, "inventory": 3})
    assert "after version 0 there are [2]" in torn(number=2)
