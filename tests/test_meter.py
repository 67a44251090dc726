"""The meter: what a second counts for, and what the figures of a flow say of it."""

import time

import pytest

from pipeline.meter import Spent, add_to, timed
from schemas.meter import FlowMeter, RunMeter, StageMeter


def burn(seconds: float) -> None:
    """Use the processor, not only the clock."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_every_second_belongs_to_one_step() -> None:
    started = time.perf_counter()
    with timed("decode") as section:
        with timed("fetch") as fetch:
            fetch.count(3, 30)
            time.sleep(0.02)
        burn(0.01)
        section.count(3, 300)
    took_s = time.perf_counter() - started
    spent = section.spent
    assert list(spent) == ["fetch", "decode"]
    assert (spent["fetch"].images, spent["fetch"].size_bytes) == (3, 30)
    assert (spent["decode"].images, spent["decode"].size_bytes) == (3, 300)
    assert spent["fetch"].busy_s >= 0.02 and spent["decode"].cpu_s >= 0.01
    assert spent["fetch"].busy_s + spent["decode"].busy_s <= took_s
    # Waiting is no work of the processor.
    assert spent["fetch"].cpu_s < spent["fetch"].busy_s


def test_what_a_child_process_computes_counts_as_processor_time() -> None:
    with timed("decode") as section, timed("decode", in_child=True):
        time.sleep(0.02)
    assert section.spent["decode"].cpu_s >= 0.02
    assert section.spent["decode"].busy_s < 2 * section.spent["decode"].cpu_s


def test_a_step_that_fails_is_closed() -> None:
    with pytest.raises(ZeroDivisionError), timed("outer"), timed("inner"):
        raise ZeroDivisionError
    with timed("next") as section:
        pass
    assert list(section.spent) == ["next"]


def test_what_was_spent_adds() -> None:
    total: dict[str, Spent] = {"a": Spent(1, 2, 3.0, 4.0)}
    add_to(total, {"a": Spent(1, 1, 1.0, 1.0), "b": Spent(5)})
    assert total == {"a": Spent(2, 3, 4.0, 5.0), "b": Spent(5)}


def stage(name: str, pool: str, workers: int, busy_s: float, cpu_s: float = 0.0) -> StageMeter:
    return StageMeter(
        name=name,
        pool=pool,
        workers=workers,
        worker_s=workers * 50.0,
        images=100,
        size_bytes=0,
        busy_s=busy_s,
        cpu_s=cpu_s,
    )


def flow(*stages: StageMeter, cores: int = 64) -> FlowMeter:
    return FlowMeter(images=100, seconds=50.0, start_up_s=5.0, cores=cores, stages=stages)


def test_the_slowest_pool_sets_the_ceiling() -> None:
    meter = flow(
        stage("fetch", "tasks", 4, 60.0),
        stage("decode", "tasks", 4, 40.0),
        stage("propose", "propose", 1, 20.0),
        stage("classify", "classify", 2, 80.0),
    )
    # Fetch and decode share four workers: 1 s an image over four.
    assert meter.limits == pytest.approx({"tasks": 4.0, "propose": 5.0, "classify": 2.5})
    assert (meter.ceiling, meter.binds) == (pytest.approx(2.5), "classify")
    assert meter.images_per_s == 2.0 and meter.share == pytest.approx(0.8)
    assert [one.utilisation for one in meter.stages] == pytest.approx([0.3, 0.2, 0.4, 0.8])
    run = RunMeter(images=100, seconds=70.0, size_bytes=1, flows=(meter,))
    assert run.start_up_s == 20.0


def test_within_a_pool_the_longest_step_binds() -> None:
    meter = flow(stage("fetch", "tasks", 1, 30.0), stage("decode", "tasks", 1, 10.0))
    assert (meter.binds, meter.ceiling) == ("fetch", pytest.approx(2.5))


def test_cores_bind_where_pools_share_too_few() -> None:
    stages = (stage("propose", "propose", 2, 40.0, 60.0), stage("classify", "classify", 2, 40.0))
    assert flow(*stages, cores=64).binds in ("propose", "classify")
    assert flow(*stages, cores=1).binds == "cores"
    assert flow(*stages, cores=1).ceiling == pytest.approx(100 / 60)


def test_a_flow_without_images_has_no_ceiling() -> None:
    meter = FlowMeter(images=0, seconds=0.0, start_up_s=1.0, cores=2, stages=())
    assert (meter.ceiling, meter.share, meter.binds, meter.images_per_s) == (0.0, 0.0, None, 0.0)


def test_a_meter_survives_its_record_and_later_fields() -> None:
    run = RunMeter(images=1, seconds=2.0, size_bytes=3, flows=(flow(stage("a", "a", 1, 1.0)),))
    values = run.model_dump(mode="json")
    assert RunMeter.model_validate({**values, "later": 1}) == run
