"""Sizes of pools: the slowest is as fast as the cluster allows."""

import itertools

import pytest

from pipeline.pool_sizes import Offer, Pool, pool_sizes


def test_gpus_are_shared_by_service_times() -> None:
    pools = {"propose": Pool(0.1, gpus=1.0), "classify": Pool(0.5, gpus=1.0)}
    assert pool_sizes(pools, 0.01, Offer(64, 6)) == {"propose": 1, "classify": 5}
    assert pool_sizes(pools, 0.01, Offer(64, 12)) == {"propose": 2, "classify": 10}


def test_fractions_of_gpus_count() -> None:
    pools = {"propose": Pool(0.1, gpus=0.25), "classify": Pool(0.3, gpus=0.5)}
    assert pool_sizes(pools, 0.0, Offer(64, 2)) == {"propose": 2, "classify": 3}


def test_decoding_keeps_the_cpus_that_it_needs() -> None:
    pools = {"propose": Pool(0.1), "classify": Pool(0.1)}
    # 12 CPUs, a tenth of a second each for three kinds of work.
    assert pool_sizes(pools, 0.1, Offer(12, 0)) == {"propose": 4, "classify": 4}


def test_machines_of_a_kind_and_sizes_that_are_given_are_limits() -> None:
    pools = {"propose": Pool(0.1, gpus=1.0), "classify": Pool(0.5, gpus=1.0, most=2)}
    assert pool_sizes(pools, 0.0, Offer(64, 16)) == {"propose": 1, "classify": 2}
    pools = {"propose": Pool(0.1, gpus=1.0, fixed=4), "classify": Pool(0.5, gpus=1.0)}
    assert pool_sizes(pools, 0.0, Offer(64, 16)) == {"propose": 4, "classify": 12}


def test_every_pool_has_a_worker_whatever_there_is() -> None:
    pools = {"propose": Pool(0.0, gpus=1.0), "classify": Pool(0.5, gpus=1.0)}
    assert pool_sizes(pools, 0.0, Offer(1, 0)) == {"propose": 1, "classify": 1}
    assert pool_sizes({"propose": Pool(0.0)}, 0.0, Offer(8, 0)) == {"propose": 1}


@pytest.mark.parametrize("gpus", range(2, 13))
@pytest.mark.parametrize("times", [(0.1, 0.5), (0.3, 0.2), (1.0, 1.0)])
def test_no_other_sizes_are_faster(gpus: int, times: tuple[float, float]) -> None:
    propose, classify = times
    pools = {"propose": Pool(propose, gpus=1.0), "classify": Pool(classify, gpus=1.0)}
    chosen = pool_sizes(pools, 0.0, Offer(100, gpus))
    best = max(
        min(a / propose, b / classify)
        for a, b in itertools.product(range(1, gpus), repeat=2)
        if a + b <= gpus
    )
    assert min(chosen["propose"] / propose, chosen["classify"] / classify) == pytest.approx(best)
