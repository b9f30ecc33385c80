"""Batches of all ranks, and sums and steps of factors."""

import numpy as np
import oracle
import pytest

import sfb
from sfb.models.collective import batches, place, seed_of, take, threads_of, total
from sfb.models.ranks import Ranks


@pytest.mark.parametrize("sizes", [[10, 10], [7, 0, 12], [1, 1, 1, 1], [40]], ids=str)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_batches_share_the_examples_of_each_rank(sizes, size):
    parts = [list(batches(np.arange(n), sizes, size)) for n in sizes]
    assert len({len(part) for part in parts}) == 1
    for step in zip(*parts, strict=True):
        (count,) = {count for _, count in step}
        assert count == sum(len(mine) for mine, _ in step) > 0
        assert count <= size + len(sizes)
    for n, part in zip(sizes, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([mine for mine, _ in part]), np.arange(n))


@pytest.mark.mpi
def test_sums_and_steps(world, rng):
    parts = oracle.draw(rng, [3] * world.size, (5, 7), np.float64)
    factors = sfb.Factors(*parts[world.rank])
    expected = oracle.total(parts, (5, 7))
    with Ranks(world) as ranks:
        found = total(ranks, factors)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        w = place(ranks, np.ones((5, 7)))
        rule = sfb.optim.Adam(w, lr=0.1)
        for _ in range(2):
            take(ranks, factors, rule)
        assert rule.steps == 2
        wanted = oracle.adam(np.ones((5, 7)), [expected] * 2, 0.1, (0.9, 0.999), 1e-8)
        np.testing.assert_allclose(w, wanted, rtol=1e-9)
        oracle.assert_same_bits(world, np.array(w))
        assert threads_of(ranks) >= 1


@pytest.mark.mpi
def test_the_seed_of_rank_0(world):
    with Ranks(world) as ranks:
        seed = seed_of(ranks, 5 + world.rank)
        assert seed == np.random.RandomState(5).randint(np.iinfo(np.int32).max)
        with pytest.raises(ValueError, match="cannot be used to seed"):
            seed_of(ranks, "five" if world.rank == world.size - 1 else 5)
