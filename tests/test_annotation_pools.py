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
from schemas.meter import FlowMeter, StageMeter

GPU = Device(num_gpus=1.0)


def offering(monkeypatch, offer, *rooms):
    monkeypatch.setattr(annotation_pools.machines, "offer", lambda devices: (offer, list(rooms)))


def meter(**service_s):
    pools = {"propose": "propose", "classify": "classify"}
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
    assert (pools.propose, pools.classify) == (1, 1)
    measured = pools.measured(meter(fetch=0.01, propose=0.1, classify=0.9))
    assert (measured.propose, measured.classify) == (1, 1)
    assert held_cpus(auto("local")) == held_cpus(ExecutionSettings()) == 2 * cores()


def test_a_cluster_is_shared_evenly_and_then_as_measured(monkeypatch):
    offering(monkeypatch, Offer(64, 12), None, None)
    pools = Pools.at_start(auto(), (GPU, GPU))
    assert (pools.propose, pools.classify) == (6, 6)
    measured = pools.measured(meter(fetch=0.01, decode=0.02, propose=0.1, classify=0.5))
    assert (measured.propose, measured.classify) == (2, 10)


def test_what_is_given_stays(monkeypatch):
    offering(monkeypatch, Offer(64, 12), None, None)
    pools = Pools.at_start(auto(propose_actors=4), (GPU, GPU))
    measured = pools.measured(meter(propose=0.1, classify=0.5))
    assert (pools.propose, pools.classify, measured.classify) == (4, 4, 8)
    fixed = Pools.at_start(auto(propose_actors=4, classify_actors=3), (GPU, GPU))
    assert fixed.measured(meter(propose=1.0, classify=9.0)) == fixed


def test_a_long_run_is_probed_on_units_spread_evenly(monkeypatch):
    offering(monkeypatch, Offer(64, 4), None, None)
    pools = Pools.at_start(auto(), (GPU, GPU))
    probe, rest = pools.probe_of(units(1000, 8))
    assert probe.images + rest.images == 8000 and 200 <= probe.images <= 300
    groups = probe.table["row_group"].to_pylist()
    assert groups == list(range(0, 1000, groups[1]))
    assert sorted(groups + rest.table["row_group"].to_pylist()) == list(range(1000))


def test_a_short_run_or_one_of_given_sizes_is_not_probed(monkeypatch):
    offering(monkeypatch, Offer(64, 4), None, None)
    pools = Pools.at_start(auto(), (GPU, GPU))
    assert pools.probe_of(units(100, 8)) is None
    assert replace(pools, fixed=(2, 2)).probe_of(units(1000, 8)) is None


@pytest.mark.parametrize("wrong", [0, -1, "many"])
def test_other_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="propose_actors"):
        ExecutionSettings(propose_actors=wrong)
