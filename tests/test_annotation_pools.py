"""Sizes of the two pools: as given, alone on one machine, measured on a cluster."""

from dataclasses import replace

import pyarrow as pa
import pytest

from jobs import annotation_pools
from jobs.annotation_pools import Pools, held_cpus
from pipeline.cores import cores
from pipeline.machines import ANY_MACHINE, Device
from pipeline.pool_sizes import Offer
from pipeline.work_units import UNITS, Units
from schemas.annotate_config import ExecutionSettings
from schemas.errors import SettingsError
from schemas.meter import FlowMeter, StageMeter

GPU = Device(num_gpus=1.0)


def offering(monkeypatch, offer, *rooms):
    monkeypatch.setattr(annotation_pools.machines, "offer", lambda devices: (offer, list(rooms)))
    monkeypatch.setattr(annotation_pools.machines, "grows_untold", lambda: False)


def meter(**service_s):
    pools = {"propose": "propose", "classify": "classify", "label": "classify"}
    stages = tuple(
        StageMeter(
            name=name, pool=pools.get(name, "tasks"), workers=1, worker_s=100.0, images=100,
            size_bytes=0, busy_s=100 * seconds, cpu_s=0.0,
        )
        for name, seconds in service_s.items()
    )  # fmt: skip
    return FlowMeter(images=100, seconds=10.0, start_up_s=1.0, cores=2, stages=stages)


def units(count, each):
    table = pa.Table.from_pylist(
        [{"path": "todo", "row_group": row} for row in range(count)], schema=UNITS
    )
    return Units(table, count * each)


def auto(address="auto", **given):
    settings = {"propose_actors": "auto", "classify_actors": "auto", **given}
    return ExecutionSettings(address=address, **settings)


def test_on_one_machine_without_gpus_a_pool_is_one_actor(monkeypatch):
    offering(monkeypatch, Offer(16, 0, is_one_machine=True), None, None)
    pools = Pools.at_start(auto("local"), (ANY_MACHINE, ANY_MACHINE))
    assert pools.actors == (1, 1)
    assert pools.measured(meter(fetch=0.01, propose=0.1, classify=0.9)).actors == (1, 1)
    assert held_cpus(auto("local")) == held_cpus(ExecutionSettings()) == 2 * cores()


def test_a_cluster_is_shared_evenly_and_then_as_measured(monkeypatch):
    offering(monkeypatch, Offer(64, 12), None, None)
    pools = Pools.at_start(auto(), (GPU, GPU))
    assert pools.actors == (6, 6)
    measured = pools.measured(meter(fetch=0.01, decode=0.02, propose=0.1, classify=0.5))
    assert measured.actors == (2, 10)
    # What goes on inside the actors of a pool is the pool's.
    measured = pools.measured(meter(fetch=0.01, propose=0.1, classify=0.2, label=0.3))
    assert measured.actors == (2, 10)


def test_what_is_given_stays(monkeypatch):
    offering(monkeypatch, Offer(64, 12), None, None)
    pools = Pools.at_start(auto(propose_actors=4), (GPU, GPU))
    measured = pools.measured(meter(propose=0.1, classify=0.5))
    assert (pools.actors, measured.actors) == ((4, 4), (4, 8))
    fixed = Pools.at_start(auto(propose_actors=4, classify_actors=3), (GPU, GPU))
    assert fixed.measured(meter(propose=1.0, classify=9.0)) == fixed


def test_what_an_autoscaler_does_not_tell_is_not_guessed(monkeypatch):
    offering(monkeypatch, Offer(0, 0), 0, 0)  # a head alone
    monkeypatch.setattr(annotation_pools.machines, "grows_untold", lambda: True)
    with pytest.raises(SettingsError, match="give propose_actors and classify_actors as a number"):
        Pools.at_start(auto(), (GPU, GPU))
    with pytest.raises(SettingsError, match="need: give classify_actors as a number"):
        Pools.at_start(auto(propose_actors=4), (GPU, GPU))
    given = auto(propose_actors=4, classify_actors=2, classify_batch="auto")
    assert Pools.at_start(given, (GPU, GPU)).actors == (4, 2)


def test_a_long_run_is_probed_on_units_spread_evenly(monkeypatch):
    offering(monkeypatch, Offer(64, 4), None, None)
    pools = Pools.at_start(auto(), (GPU, GPU))
    probe, rest = pools.probe_of(units(1000, 8))
    assert probe.images + rest.images == 8000 and 200 <= probe.images <= 300
    groups = probe.table["row_group"].to_pylist()
    assert groups == list(range(0, 1000, groups[1]))
    assert sorted(groups + rest.table["row_group"].to_pylist()) == list(range(1000))


def test_batches_are_as_small_as_is_nearly_as_fast(monkeypatch):
    offering(monkeypatch, Offer(64, 12), None, None)
    pools = Pools.at_start(auto(propose_batch="auto", classify_batch="auto"), (GPU, GPU))
    assert pools.batches == (8, 8)
    assert pools.sizes_tried("propose") == pools.sizes_tried("classify") == (8, 16, 32)
    first = meter(fetch=0.01, propose=0.15, classify=0.5, label=0.5)
    tried = {
        "propose": {8: 0.2, 16: 0.103, 32: 0.1},
        "classify": {8: 0.51, 16: 0.5, 32: 0.55},
    }
    stages = tuple(
        stage.model_copy(update={"tried_s": tried.get(stage.name, {})}) for stage in first.stages
    )
    measured = pools.measured(first.model_copy(update={"stages": stages}))
    assert measured.batches == (16, 8)
    # Sized by what the pools take with these batches.
    assert measured.actors == (2, 10)


def test_a_batch_that_is_given_stays_and_is_not_measured(monkeypatch):
    offering(monkeypatch, Offer(64, 12), None, None)
    pools = Pools.at_start(auto(propose_batch=4, classify_batch="auto"), (GPU, GPU))
    assert (pools.batches, pools.sizes_tried("propose")) == ((4, 8), ())
    assert pools.measured(meter(propose=0.1, classify=0.5)).batches == (4, 8)


def test_batches_need_a_longer_probe(monkeypatch):
    offering(monkeypatch, Offer(64, 4), None, None)
    settings = {"propose_actors": 2, "classify_actors": 2, "classify_batch": "auto"}
    pools = Pools.at_start(auto(**settings), (GPU, GPU))
    assert pools.probe_of(units(1000, 8)) is None
    probe, _ = pools.probe_of(units(4000, 8))
    # Four rounds of three sizes, in batches of 32, for each of four actors.
    assert 1536 <= probe.images <= 1700


def test_a_short_run_or_one_of_given_sizes_is_not_probed(monkeypatch):
    offering(monkeypatch, Offer(64, 4), None, None)
    pools = Pools.at_start(auto(), (GPU, GPU))
    assert pools.probe_of(units(100, 8)) is None
    assert replace(pools, fixed=(2, 2)).probe_of(units(1000, 8)) is None


@pytest.mark.parametrize("wrong", [0, -1, "many"])
@pytest.mark.parametrize("name", ["propose_actors", "classify_batch"])
def test_other_sizes_are_refused(name, wrong):
    with pytest.raises(ValueError, match=name):
        ExecutionSettings(**{name: wrong})
