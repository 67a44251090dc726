"""The chaos harness, short: two schedules of different kinds; `make chaos` runs many."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.ground import Ground
from tests.chaos.proxy import faulty_store
from tests.chaos.schedule import Disturbed, Moment, Schedule, Strike
from tests.chaos.trial import carry_out
from tests.servers import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3]


@pytest.fixture(scope="module")
def disk() -> Iterator[Ground]:
    # Not pytest's folder: the paths of Ray's sockets would be too long.
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Ground(Path(folder), "disk")


def test_a_killed_driver_leaves_what_it_had_finished(disk: Ground) -> None:
    killed = Strike("driver", Moment("files", "_runs/.*/parts/", count=2))
    verdict = carry_out(Schedule(1, "disk", (Disturbed((killed,)),)), disk)
    assert (verdict.divergences, verdict.torn_reads) == ([], [])
    assert "exit -9" in verdict.story[0] and "exit 0" in verdict.story[1]
    assert verdict.reads > 0
    assert verdict.work.needed == len(disk.images[0])
    # Two parts were recorded, and nothing of them was done again.
    assert verdict.work.redone == 0
    assert verdict.work.runs == 2


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
