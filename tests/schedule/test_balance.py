"""Load balancing, and blocks that change hands."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfb import MismatchError
from sfb.schedule import Costs, cut, loads, move, partition, rebalance

costs_of_items = st.lists(st.floats(0, 1e6, allow_nan=False), max_size=40)


@given(costs_of_items, st.integers(1, 9))
def test_partition(costs, parts):
    owners = partition(costs, parts)
    assert owners.shape == (len(costs),)
    sums = loads(owners, costs, parts)
    assert sums.sum() == pytest.approx(sum(costs))
    assert sums.max() <= sum(costs) / parts + max(costs, default=0) + 1e-6  # any list schedule keeps this
    counts = np.bincount(partition(np.ones(len(costs)), parts), minlength=parts)
    assert counts.max() - counts.min() <= 1


@given(costs_of_items, st.integers(1, 9))
def test_cut(costs, parts):
    bounds = cut(costs, parts)
    assert len(bounds) == parts + 1
    assert (bounds[0], bounds[-1]) == (0, len(costs))
    assert (np.diff(bounds) >= 0).all()
    largest = max((sum(costs[a:b]) for a, b in pairwise(bounds)), default=0)
    assert largest <= best_cut(costs, parts) * (1 + 1e-9) + 1e-9


def best_cut(costs, parts):
    """Return the least possible largest part, by dynamic programming."""
    sums = np.concatenate([[0], np.cumsum(costs)])
    best = sums.copy()  # with one part
    for _ in range(parts - 1):
        best = np.array([min(max(best[k], sums[n] - sums[k]) for k in range(n + 1)) for n in range(len(sums))])
    return best[-1]


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 4)), max_size=30))
def test_rebalance(items):
    costs, owners = [cost for cost, _ in items], [owner for _, owner in items]
    found = rebalance(owners, costs, 5)
    before, after = loads(owners, costs, 5), loads(found, costs, 5)
    assert after.max() <= before.max() * (1 + 1e-12)
    assert after.sum() == pytest.approx(before.sum())


def test_rebalance_moves_what_must_move():
    costs = np.ones(16)
    found = rebalance([0] * 16, costs, 4)
    assert loads(found, costs, 4).tolist() == [4, 4, 4, 4]
    even = np.arange(16) % 4
    np.testing.assert_array_equal(rebalance(even, costs, 4), even)


def test_costs_are_smoothed():
    costs = Costs(3, memory=0.75)
    for seconds in (8.0, 4.0):
        costs.add(1, seconds)
    assert costs.values.tolist() == [0, 7, 0]
    with costs.measure(2):
        pass
    assert costs.values[2] > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: partition([-1.0], 2),
        lambda: partition([np.nan], 2),
        lambda: cut([1.0], 0),
        lambda: rebalance([0, 3], [1.0, 1.0], 2),
        lambda: rebalance([0], [1.0, 1.0], 2),
        lambda: Costs(0),
        lambda: Costs(1, memory=1),
    ],
    ids=["negative", "NaN", "no parts", "no such part", "lengths", "no blocks", "memory"],
)
def test_bad_arguments(call):
    with pytest.raises(ValueError, match=r"must be|expected"):
        call()


@pytest.mark.mpi
def test_costs_of_all_ranks(world):
    costs = Costs(world.size)
    costs.add(world.rank, 1.0 + world.rank)
    assert costs.share(world).tolist() == [1.0 + rank for rank in range(world.size)]


def block(number):
    """Return the arrays of a block, of a shape and dtypes of its own."""
    return [np.full((number + 1, 3), number, np.float32), np.arange(number, dtype=np.int64), np.array(number > 1)]


@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(4))
def test_blocks_move_to_their_owners(world, seed):
    rng = np.random.default_rng(seed)
    count = 2 * world.size + 1
    homes, owners = rng.integers(0, world.size, (2, count))
    held = {number: block(number) for number in range(count) if homes[number] == world.rank}
    found = move(world, held, owners)
    assert list(found) == [number for number in range(count) if owners[number] == world.rank]
    for number, arrays in found.items():
        for array, expected in zip(arrays, block(number), strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


@pytest.mark.mpi
def test_wrong_owners_on_one_rank(world):
    last = world.rank == world.size - 1
    held = {world.rank: block(0)}
    with pytest.raises(ValueError, match="owners must be"):
        move(world, held, [world.size if last else 0] * world.size)
    with pytest.raises(ValueError, match="each once"):
        move(world, {5: block(0)} if last else held, [0] * world.size)
    with pytest.raises(TypeError, match="NumPy"):
        move(world, {world.rank: [[1, 2]] if last else block(0)}, range(world.size))
    if world.size > 1:
        with pytest.raises(MismatchError, match="owners"):
            move(world, held, [0 if last else 1] * world.size)
    move(world, held, np.arange(world.size))  # the ranks go on
