from time import perf_counter

import numpy as np
import pytest

from sfb.trace import clocks


def test_offset_takes_the_shortest_way():
    samples = [(10.0, 15.9, 11.0), (20.0, 25.02, 20.04), (30.0, 36.0, 32.0)]
    offset, unsure = clocks.offset(samples)
    assert offset == pytest.approx(5.0)
    assert unsure == pytest.approx(0.02)


def test_one_measurement_says_nothing_of_drift():
    np.testing.assert_array_equal(clocks.correction(np.array([-5.0, 0.0, 99.0]), [3.0], [0.25]), 0.25)


def test_drift_changes_between_measurements():
    found = clocks.correction(np.array([0.0, 5.0, 15.0, 20.0, 30.0]), [0.0, 10.0, 20.0], [0.0, 1.0, 5.0])
    np.testing.assert_allclose(found, [0.0, 0.5, 3.0, 5.0, 9.0])


@pytest.mark.mpi
def test_clocks_that_are_wrong_and_drift(world):
    """Rank r is r · 5 ms ahead, and gains r · 20 ppm."""
    own, found = clocks.measure(world, lambda: perf_counter() * (1 + 2e-5 * world.rank) + 5e-3 * world.rank, 5.0)
    base = perf_counter()
    bases = world.allgather((own, base))
    if world.rank == 0:
        assert found == [each[:2] for each, _ in bases]
    assert own is not None
    offset, unsure, at = own
    assert at <= perf_counter() * (1 + 2e-5 * world.rank) + 5e-3 * world.rank
    assert offset == pytest.approx(world.rank * (2e-5 * base + 5e-3), abs=unsure + 1e-4)


@pytest.mark.mpi
def test_only_some_ranks_are_measured(world):
    ranks = list(range(2, world.size))
    own, found = clocks.measure(world, lambda: float(world.rank), 5.0, ranks=ranks)
    assert (own is None) == (world.rank == 1)
    if world.rank == 0:
        assert [offset for offset, _ in found] == [0.0, *map(float, ranks)]
