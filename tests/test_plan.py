import numpy as np
import pytest

from sfb.collectives import ALGORITHMS, Problem
from sfb.plan import choose


def problem(shape, samples, ranks, nodes=1, shared=False, sharing=1.0):
    per_node = ranks // nodes
    return Problem(
        shape=shape,
        dtype=np.dtype("f4"),
        counts=np.full(ranks, samples, np.int64),
        ranks=ranks,
        ranks_per_node=per_node,
        nodes=nodes,
        passes=1,
        shared=shared,
        sharing=sharing,
    )


def test_factors_where_few_samples_meet_a_large_matrix():
    assert choose(problem((4096, 4096), 1, 4, nodes=4)).algorithm in ("broadcast", "node")
    assert choose(problem((4096, 4096), 10, 4, shared=True)).algorithm == "node"


def test_dense_where_many_samples_meet_a_small_matrix():
    assert choose(problem((10, 784), 512, 16, nodes=16)).algorithm == "dense"
    assert choose(problem((600, 780), 4096, 8, nodes=8)).algorithm == "dense"


def test_the_cheapest_estimate_is_taken():
    for samples in (0, 1, 100, 10_000):
        plan = choose(problem((1000, 1000), samples, 8, nodes=2))
        assert plan.algorithm == min(plan.estimates, key=lambda e: e.total).algorithm
        assert {e.algorithm for e in plan.estimates} == set(ALGORITHMS)


def test_a_named_algorithm_is_taken_whatever_it_costs():
    for name in ALGORITHMS:
        plan = choose(problem((10, 10), 1000, 4), name)
        assert plan.algorithm == name
        assert "named by the caller" in plan.explain()


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_dense_moves_what_a_ring_moves(ranks):
    cost = ALGORITHMS["dense"].cost(problem((64, 32), 5, ranks))
    assert cost.nbytes == pytest.approx(2 * 64 * 32 * 4 * (ranks - 1) / ranks if ranks > 1 else 0)
    assert cost.flops == 2 * 5 * 64 * 32


def test_node_rebuilds_a_share_and_brings_each_sample_into_a_node_once():
    flat, shared = (ALGORITHMS["node"].cost(problem((4096, 64), 5, 8, 2, shared)) for shared in (False, True))
    assert shared.flops == pytest.approx(flat.flops / 4)
    broadcast = ALGORITHMS["broadcast"].cost(problem((4096, 64), 5, 8, 2))
    assert flat.far_nbytes == pytest.approx(broadcast.far_nbytes / 4)


def test_counts():
    uneven = problem((4, 3), 2, 3)
    assert uneven.uniform
    assert uneven.depth == 6
    np.testing.assert_array_equal(uneven.offsets, [0, 2, 4])
