"""Mini-batches of all ranks, and what their steps keep."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits

pytest.importorskip("sklearn")

import sfb
from sfb.models.collective import batches
from sfb.models.linear.descent import Descent, weights_of_batches
from sfb.models.nets.network import Network
from sfb.models.ranks import Ranks

RULES = [sfb.optim.Adam(), sfb.optim.SGD(lr=0.1, momentum=0.9), sfb.optim.Adagrad()]


@pytest.mark.parametrize("sizes", [[10], [7, 0, 5], [1, 1, 1, 90], [3, 2]])
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_an_epoch_takes_each_sample_once(sizes, batch):
    """All ranks have as many batches, which hold about as many samples of a rank each."""
    taken = [list(batches(np.arange(size)[::-1], sizes, batch)) for size in sizes]
    assert len({len(parts) for parts in taken}) == 1
    for size, parts in zip(sizes, taken, strict=True):
        assert np.concatenate([mine for mine, _ in parts]).tolist() == list(range(size))[::-1]
        lengths = [len(mine) for mine, _ in parts]
        assert max(lengths) - min(lengths) <= max(1, len(sizes))
    for parts in zip(*taken, strict=True):
        assert {count for _, count in parts} == {sum(len(mine) for mine, _ in parts)}


@pytest.mark.mpi
def test_weights_of_batches(world):
    weights = np.arange(12.0) + world.rank
    with Ranks() as ranks:
        parts = list(batches(np.arange(12), ranks.gather(12), 4 * ranks.size))
        found = weights_of_batches(ranks, weights, parts)
    np.testing.assert_allclose(
        found, [sum(sum(range(4 * i, 4 * i + 4)) + 4 * r for r in range(world.size)) for i in range(3)]
    )


@pytest.mark.mpi
@pytest.mark.parametrize(
    "rule",
    [sfb.optim.Adam(), sfb.optim.SGD(lr=0.1, momentum=0.9), sfb.optim.Adagrad()],
    ids=lambda rule: type(rule).__name__,
)
def test_steps_go_on_from_a_state(world, rng, rule):
    """Steps after `restore` are those of the descent that was asked for its state."""
    x, y = rng.standard_normal((8, 3)), rng.integers(0, 4, 8)
    rows, size = np.arange(8), 8.0 * world.size

    def network(arrays=None):
        made = Network([3, 5, 4], dtype=np.float64, seed=1)
        made.initialise()
        for parameter, array in zip(made.parameters, arrays or [], strict=arrays is not None):
            parameter.array[:] = array
        return made

    with Ranks() as ranks:
        whole = Descent(ranks, network(), rule)
        for _ in range(2):
            whole.step(x, y, rows, size, 0.1, weight_decay=0.01)
        arrays, state = [parameter.array.copy() for parameter in whole.network.parameters], whole.state()
        whole.step(x, y, rows, size, 0.1, weight_decay=0.01)
        other = Descent(ranks, network(arrays), rule)
        other.restore(state if ranks.rank == 0 else {})
        other.step(x, y, rows, size, 0.1, weight_decay=0.01)
        for ours, theirs in zip(other.network.parameters, whole.network.parameters, strict=True):
            # Algorithms on trial may differ from step to step, and round differently.
            np.testing.assert_allclose(ours.array, theirs.array, rtol=1e-9, atol=1e-12)
            assert_same_bits(world, ours.array)
