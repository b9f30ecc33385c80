"""MAX and MIN where a rank has NaN: NaN wins, whoever reduces."""

import functools
import sys

import numpy as np
import pytest
from mpi4py import MPI

import sfb
from sfb.arrays import dispatch, internode, ops
from sfb.arrays.buffers import dtype_of
from sfb.arrays.dispatch import Arrays
from sfb.arrays.ops import op_for_mpi

pytestmark = pytest.mark.mpi

OPS = {"max": (MPI.MAX, np.maximum), "min": (MPI.MIN, np.minimum)}
# Below and above what is reduced as lines, at once, and between nodes.
COUNTS = [1, 100, 5000, 70_001]


def draw(rng, dtype, count, size):
    """Return an array for each rank, the same on every rank, with NaN at one rank, at all, or at none."""
    given = rng.standard_normal((size, count)).astype(dtype)
    given[rng.random((size, count)) < 0.1] = np.nan
    given[rng.random((size, count)) < 0.1] = np.inf
    given[rng.random((size, count)) < 0.1] = -np.inf
    given[rng.integers(size), 0] = np.nan
    return given


def calls(comm, mine, op):
    """Yield the result of each call that has the rule."""
    result, results = np.empty_like(mine), np.empty((comm.size, mine.size), mine.dtype)
    comm.Allreduce(mine, result, op)
    yield result
    result = mine.copy()
    comm.Allreduce(MPI.IN_PLACE, result, op)
    yield result
    result = np.empty_like(mine)
    comm.Allreduce([mine, mine.size], memoryview(result), op)
    yield result
    result = np.empty_like(mine)
    comm.Iallreduce(mine, result, op).Wait()
    yield result
    comm.Reduce_scatter_block(np.tile(mine, comm.size), result, op)
    yield result
    request = comm.Allreduce_init(mine, result, op)
    request.Start()
    request.Wait()
    request.Free()
    yield result
    shared = comm.shared((comm.size, mine.size), mine.dtype)
    comm.node.Barrier()
    results = comm.shared(mine.size, mine.dtype)
    shared[comm.rank] = mine
    comm.node.Barrier()
    comm.Allreduce(shared[comm.rank], results, op)
    yield results


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("served", [True, False], ids=["by the library", "by MPI between nodes"])
def test_nan_wins(any_comm, world, rng, monkeypatch, dtype, op, served):
    monkeypatch.setattr(Arrays, "_choice", lambda self, nbytes: served)
    monkeypatch.setattr(dispatch, "_FAR", 1 << 12)
    monkeypatch.setattr(internode, "_MESSAGE", (1 << 7, 1 << 9))
    handle, ufunc = OPS[op]
    for count in COUNTS:
        given = draw(rng, dtype, count, world.size)
        expected = ufunc.reduce(given, axis=0)
        for result in calls(any_comm, given[world.rank].copy(), handle):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("numba", [True, False], ids=["compiled", "without Numba"])
@pytest.mark.parametrize("op", OPS)
def test_nan_wins_without_the_library(world, rng, monkeypatch, op, numba):
    """An operation for MPI alone, in every form of buffer."""
    if not numba:
        monkeypatch.setitem(sys.modules, "sfb.kernels.ops", None)
        monkeypatch.delattr(sfb.kernels, "ops", raising=False)
    monkeypatch.setattr(ops, "_op", functools.cache(ops._op.__wrapped__))
    handle, ufunc = OPS[op]
    given = draw(rng, "f8", 300, world.size)
    mine = given[world.rank].copy()
    for form in (lambda a: a, lambda a: [a, MPI.DOUBLE], lambda a: [a, 300, "d"], memoryview):
        result = np.empty_like(mine)
        world.Allreduce(form(mine), form(result), op_for_mpi(handle, form(result)))
        np.testing.assert_array_equal(result, ufunc.reduce(given, axis=0))


def test_other_operations_stay_those_of_mpi():
    x = np.ones(3)
    assert op_for_mpi(MPI.SUM, x) is MPI.SUM
    assert op_for_mpi(MPI.MAX, x.astype(int)) is MPI.MAX
    assert op_for_mpi(None, x) is None
    assert op_for_mpi(MPI.MAX, x) == op_for_mpi(MPI.MAX, [x, MPI.DOUBLE])
    assert dtype_of([None, MPI.DOUBLE_INT]) != np.float64
