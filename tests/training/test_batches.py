"""Batches have the same examples on any number of ranks, however samples are divided."""

import numpy as np
import pytest
from scipy import sparse

from sfb.models import mlr
from sfb.training.batches import Epochs, Samples
from sfb.training.fingerprint import fingerprint

pytestmark = pytest.mark.mpi

COUNT = 53


def samples(world, sharded, form=np.asarray):
    """Return samples of which every third is held out, all of them or this rank's."""
    x = np.arange(COUNT * 3, dtype=np.float32).reshape(COUNT, 3)
    x[x % 4 == 0] = 0
    y, rows = np.arange(COUNT) % 5, np.array([i for i in range(COUNT) if i % 3])
    if not sharded:
        return Samples(form(x), y, rows)
    low, high = (COUNT * i // world.size for i in (world.rank, world.rank + 1))
    own = rows[(rows >= low) & (rows < high)] - low
    return Samples(form(x[low:high]), y[low:high], own, whole=False)


@pytest.mark.parametrize("sharded", [False, True])
def test_batches_do_not_depend_on_the_number_of_ranks(world, sharded):
    from mpi4py import MPI

    model = mlr(3, 5)
    given, alone = samples(world, sharded), samples(world, False)
    for number in (1, 2):
        ours = Epochs(world, model, given, 8, seed=3).batches(number)
        one = Epochs(MPI.COMM_SELF, model, alone, 8, seed=3).batches(number)
        assert (ours.steps, ours.examples) == (one.steps, one.examples) == (5, 35)
        seen = []
        for step in range(ours.steps):
            (rows, size), (expected, whole) = ours.part(step), one.part(step)
            assert size == whole == len(expected)
            together = np.concatenate(world.allgather(given.x[rows[:, 0]]))
            theirs = alone.x[expected[:, 0]]
            np.testing.assert_array_equal(*(part[np.lexsort(part.T)] for part in (together, theirs)))
            seen.append(together)
        assert len(np.concatenate(seen)) == 35
    first, again, other = (Epochs(world, model, given, 8, seed=s).batches(n) for s, n in ((3, 1), (3, 1), (4, 1)))
    parts = [world.allgather(batches.part(0)[0].tolist()) for batches in (first, again, other)]
    assert parts[0] == parts[1] != parts[2]


class Pairs:
    """Makes pairs of neighbours."""

    def examples(self, y, rng):
        return np.stack([np.arange(len(y)), (np.arange(len(y)) + 1) % max(1, len(y))], axis=1)


@pytest.mark.parametrize("sharded", [False, True])
def test_examples_of_several_samples(world, sharded):
    given = samples(world, sharded)
    batches = Epochs(world, Pairs(), given, 8, seed=0).batches(1)
    taken = np.concatenate([batches.part(step)[0] for step in range(batches.steps)])
    assert taken.shape[1] == 2
    assert set(taken.ravel().tolist()) <= set(given.rows.tolist())
    total = world.allreduce(len(taken))
    assert total == batches.examples == 35


def test_a_fingerprint_is_that_of_the_samples(world):
    forms = [(sharded, form) for sharded in (False, True) for form in (np.asarray, sparse.csr_matrix)]
    found = {fingerprint(world, samples(world, *form)) for form in forms}
    assert len(found) == 1
    for change in ("value", "label", "order", "number"):
        other = samples(world, False)
        x, y, rows = other.x.copy(), other.y.copy(), other.rows.copy()
        if change == "value":
            x[rows[4], 1] += 1
        elif change == "label":
            y[rows[0]] += 1
        elif change == "order":
            rows[[2, 3]] = rows[[3, 2]]
        else:
            rows = rows[:-1]
        assert fingerprint(world, Samples(x, y, rows)) not in found, change
    x, y = samples(world, False).x.copy(), samples(world, False).y
    x[0] += 1  # held out
    assert fingerprint(world, Samples(x, y, samples(world, False).rows)) in found
