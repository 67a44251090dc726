"""`segmill simulate`: what binds, what gives out, and where its figures come from."""

import json
from datetime import UTC, datetime

import pytest

from jobs.cli import main
from pipeline.files import write_bytes
from pipeline.meter import Spent
from pipeline.pool_sizes import Pool
from pipeline.prediction import Machines
from pipeline.simulation import (
    SCHEDULER,
    STORE_READS,
    Cluster,
    Engine,
    Losses,
    Measured,
    Pieces,
    Store,
    simulate_run,
)
from schemas.meter import FlowMeter, RunMeter, StageMeter
from schemas.runs import RunEnd

MEASURED = Measured(
    {
        "fetch": Spent(100, 100 * 200_000, 2.0, 0.5),
        "decode": Spent(100, 100 * 2**20, 2.0, 2.0),
        "propose": Spent(100, 100 * 2**21, 1.0, 0.2),
        "classify": Spent(100, 100 * 5_000, 4.0, 0.4),
        "write": Spent(100, 100 * 5_000, 0.1, 0.1),
    },
    warm_up_s=20.0,
    row_bytes=5_000.0,
)
PIECES = Pieces(unit=1024, part=4096, file=32_768, batches={"propose": 8, "classify": 8})
STORE = Store(gets_per_s=5500.0, puts_per_s=3500.0, bytes_per_s=None, list_page_s=0.1)
POOLS = {"propose": Pool(0.0, gpus=1.0), "classify": Pool(0.0, gpus=1.0)}


def run(images=10**6, cpus=512, gpus=64, engine=None, **cluster):
    machines = Machines(cpus, gpus, 1, False, 0.05, 2.0)
    there = Cluster(machines, POOLS, **{"store": STORE, **cluster})
    return simulate_run(images, MEASURED, there, PIECES, engine or Engine())


def test_a_run_goes_as_fast_as_its_slowest_pool():
    found = run(engine=Engine(task_s=1e-6))
    sizes = found.prediction.sizes
    assert sizes["propose"] + sizes["classify"] == 64
    assert found.binds in ("propose", "classify")
    expected = min(sizes["propose"] / 0.01, sizes["classify"] / 0.04)
    assert found.images_per_s == pytest.approx(expected)
    assert found.phases["label"] == pytest.approx(10**6 / expected)
    assert found.seconds == pytest.approx(sum(found.phases.values()))
    assert found.machines.cost(found.seconds) == pytest.approx(
        found.seconds / 3600 * (512 * 0.05 + 64 * 2.0)
    )
    assert found.written_bytes == 10**6 * 5_000


def test_more_gpus_than_the_store_answers_gain_nothing():
    engine = Engine(task_s=1e-6)
    some, many = run(gpus=512, cpus=8192, engine=engine), run(gpus=1024, cpus=8192, engine=engine)
    assert some.binds == many.binds == STORE_READS
    assert some.images_per_s == many.images_per_s == 5500
    carried = run(engine=engine, store=Store(5500.0, 3500.0, 21.5e6, 0.1))
    assert carried.binds == "store bandwidth"
    assert carried.images_per_s == pytest.approx(21.5e6 / 215_000)


def test_the_scheduler_has_so_many_tasks_an_image():
    # Blocks of 32 MiB: 32 decoded images, 16 with masks; and one task per unit and per part.
    found = run(images=10**6)
    tasks = 1 / 1024 + 1 / 4096 + 1 / 32 + 1 / 16
    assert found.tasks == pytest.approx(10**6 * tasks)
    assert found.limits[SCHEDULER] == pytest.approx(1 / (tasks * Engine().task_s))
    slow = run(engine=Engine(task_s=1.0))
    assert slow.binds == SCHEDULER
    assert any("one driver hands out at most" in note for note in slow.notes)
    assert not any("one driver hands out" in note for note in run(gpus=2).notes)


def test_machines_that_are_taken_away_are_missed_until_others_are_warm():
    calm, stormy = run(gpus=4), run(gpus=4, losses=Losses(per_hour=0.5, replace_s=340.0))
    assert stormy.lost_share == pytest.approx(0.05)
    assert stormy.images_per_s == pytest.approx(0.95 * calm.images_per_s)


def test_what_one_process_does_alone_is_told_where_it_counts():
    small, large = run(10**6, gpus=8), run(10**9, cpus=65_536, gpus=4096)
    assert small.notes == ()
    told = " ".join(large.notes)
    assert "one process lists and plans" in told
    assert large.files == -(-(10**9) // 32_768)
    assert large.manifest_bytes == large.files * Engine().file_bytes
    assert large.units == -(-(10**9) // 1024)
    driver = Engine().driver_bytes + large.units * Engine().unit_bytes
    assert large.driver_bytes == driver


def stage(name, pool, size_bytes, busy_s, images=50):
    return StageMeter(
        name=name, pool=pool, workers=1, worker_s=10.0, images=images,
        size_bytes=images * size_bytes, busy_s=images * busy_s, cpu_s=0.0,
    )  # fmt: skip


def flow(images=50):
    stages = (
        stage("fetch", "tasks", 200_000, 0.02, images),
        stage("decode", "tasks", 2**20, 0.02, images),
        stage("propose", "propose", 2**21, 0.01, images),
        stage("classify", "classify", 5_000, 0.04, images),
        stage("write", "tasks", 5_000, 0.001, images),
    )
    return FlowMeter(images=images, seconds=10.0, start_up_s=20.0, cores=4, stages=stages)


def record(dataset, run_id, meter):
    now = datetime.now(UTC)
    end = RunEnd(run_id=run_id, started=now, ended=now, outcome="published", version=1, meter=meter)
    write_bytes(dataset, f"_runs/{run_id}/end.json", end.model_dump_json().encode())


def test_the_newest_run_that_was_measured_is_what_is_told_from(tmp_path, capsys):
    dataset = str(tmp_path)
    probed = RunMeter(images=100, seconds=40.0, size_bytes=500_000, flows=(flow(), flow()))
    relabelled = flow().model_copy(update={"stages": (stage("label", "tasks", 5_000, 0.001),)})
    record(dataset, "20260101T000000-a", probed)
    record(dataset, "20260102T000000-b", probed.model_copy(update={"flows": (relabelled,)}))
    record(dataset, "20260103T000000-c", None)
    command = ["simulate", dataset, "--images", "1000000", "--clusters", "64x8,512x64"]
    assert main([*command, "--gpu-hour-price", "2"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["run_id"], told["measured_images"]) == ("20260101T000000-a", 100)
    few, many = told["runs"]
    assert (few["cpus"], few["gpus"], many["gpus"]) == (64, 8, 64)
    assert few["actors"]["propose"] + few["actors"]["classify"] == 8
    assert few["limits"]["classify"] == pytest.approx(few["actors"]["classify"] / 0.04)
    assert few["gpu_hours"] == pytest.approx(8 * few["seconds"] / 3600, rel=1e-3)
    assert few["cost"] == pytest.approx(2 * few["gpu_hours"], rel=1e-3)
    assert "1,000,000" in captured.err


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "none of the newest 50 runs of"),
        (["--clusters", "64"], "clusters"),
        (["--clusters", "0x4"], "clusters"),
        (["--images", "0"], "images"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, capsys, flags, words):
    assert main(["simulate", str(tmp_path), *flags]) in (1, 2)
    assert words in capsys.readouterr().err


def test_a_cluster_without_room_for_both_pools_is_refused(tmp_path, capsys):
    record(str(tmp_path), "r", RunMeter(images=50, seconds=9.0, size_bytes=1, flows=(flow(),)))
    assert main(["simulate", str(tmp_path), "--clusters", "8x1"]) == 2
    assert "no room for an actor of each pool" in capsys.readouterr().err
    flags = ["--propose-gpus", "0.5", "--classify-gpus", "0.5"]
    assert main(["simulate", str(tmp_path), "--clusters", "8x1", *flags]) == 0
