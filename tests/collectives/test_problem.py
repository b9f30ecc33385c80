import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from problems import even

from sfb.collectives import Problem, fill_nodes
from sfb.collectives.problem import Spread
from sfb.tuning.profile import Place


def test_counts():
    problem = even((4, 3), 2, 3)
    assert problem.uniform
    assert problem.spans == ()
    assert problem.depth == 6
    np.testing.assert_array_equal(problem.offsets, [0, 2, 4])


def test_uneven_counts():
    counts = np.array([3, 0, 2], np.int64)
    problem = Problem((4, 3), np.dtype("f4"), counts, fill_nodes(3, 1), passes=1)
    assert not problem.uniform
    assert (problem.depth, problem.deepest) == (5, 3)
    np.testing.assert_array_equal(problem.spans, [[3, 0, 2], [0, 3, 3]])


def test_ranks_fill_nodes_as_evenly_as_possible():
    assert fill_nodes(8, 3) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert even((4, 3), 1, 8, nodes=3, sharing=2.0).place == Place(8, 3, 3, 2.0)


def test_blocks_stay_below_the_ceiling():
    assert even((100, 50), 10, 4).row_blocks == [(0, 100)]
    tight = even((400, 50), 10, 4, max_bytes=40 * 50 * 4 * 2)
    assert tight.sample_blocks == 1
    assert len(tight.row_blocks) > 1
    assert tight.row_blocks[0][0] == 0
    assert tight.row_blocks[-1][1] == 400
    tighter = even((400, 50), 100, 4, max_bytes=1000)
    assert tighter.sample_blocks > 1
    assert tighter.sample_edges[0].sum() == 0
    assert tighter.sample_edges[-1].sum() == 400


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=9).filter(lambda counts: len(set(counts)) > 1))
def test_plans_have_the_most_samples(counts):
    most = Spread.of(np.array(counts)).counts(len(counts))
    assert most.min() >= 0
    assert max(counts) <= most.max() <= 1.25 * max(counts) + 2
    assert sum(counts) <= most.sum() <= 1.25 * sum(counts) + len(counts) + 2
    assert len(set(most.tolist())) > 1


@given(st.integers(1, 9000), st.integers(1, 3000))
def test_the_bounds_of_a_spread_are_all_that_lies_in_it(depth, deepest):
    spread = Spread.of(np.array([deepest, max(0, depth - deepest)]))
    least, most, first, last = spread.bounds
    of = lambda samples: Spread.of(np.array([samples, 0])).deepest  # noqa: E731
    assert (most, last) == spread
    for low, high in ((least, most), (first, last)):
        assert {of(n) for n in (low, (low + high) // 2, high)} == {high}
        assert of(high + 1) > high
        assert low == 0 or of(low - 1) < high
