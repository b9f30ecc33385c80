import gc
import os

import numpy as np
import pytest

import sfb
from sfb.runtime import windows

pytestmark = pytest.mark.mpi


def test_one_copy_per_node(comm, world):
    w = comm.shared((3, 4), np.float64)
    assert w.shape == (3, 4)
    assert w.dtype == np.float64
    assert w.flags.c_contiguous
    assert not w.any()
    comm.Barrier()
    if comm.node.rank == 0:
        w[1] = 7.0
    comm.Barrier()
    np.testing.assert_array_equal(w[1], 7.0)


@pytest.mark.parametrize("shape", [5, (5,), (0, 3), (), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["f4", "i8", "c16", bool])
def test_shapes_and_dtypes(comm, shape, dtype):
    array = comm.shared(shape, dtype)
    assert array.shape == np.empty(shape).shape
    assert array.dtype == dtype
    assert not array.any()


def test_an_array_outlives_its_communicator(world):
    comm = sfb.Comm(world)
    kept, dropped = comm.shared((100, 100)), comm.shared((100, 100))
    address = dropped.__array_interface__["data"][0]
    view = kept[3:]
    del kept, dropped
    gc.collect()
    comm.free()
    view[:] = 1.0
    world.Barrier()
    np.testing.assert_array_equal(view, 1.0)
    assert windows.find(view) is not None
    assert not any(block._begin == address for block in windows._blocks)


def test_too_little_shared_memory_is_an_error_on_every_rank(comm, world, monkeypatch):
    """One node's folder is almost full; MPI would let ranks die when they touch what is not there."""
    comm.Allreduce(np.ones(3), np.empty(3))
    there = list(os.statvfs("/"))
    there[:5] = 4096, 4096, (64 << 20) // 4096, 100, 100  # sizes of blocks; all, free and available blocks
    arrays = [comm.shared((10, 10))]
    with monkeypatch.context() as full:
        full.setattr(windows, "_folder", "/dev/shm")
        full.setattr(windows.os, "statvfs", lambda folder: os.statvfs_result(there))
        if comm.node.size > 1:
            with pytest.raises(MemoryError, match=r"needs 128.0 MiB, and /dev/shm on .* of 64.0 MiB; .*--shm-size"):
                comm.shared((8192, 4096))
        else:
            arrays.append(comm.shared((8192, 4096)))
    arrays.append(comm.shared((10, 10)))
    comm.Barrier()
    assert not arrays[-1].any()


def test_memory_is_freed(world, unwatched):
    before = len(windows._blocks)
    for _ in range(20):
        with sfb.Comm(world) as comm:
            g = comm.shared((50, 60), np.float64)
            comm.Allreduce(sfb.Factors(np.ones((1, 50)), np.ones((1, 60))), g, algorithm="node")
            del g
    assert len(windows._blocks) <= before


@pytest.mark.parametrize("kept", [1, 3])
def test_windows_are_freed_while_arrays_come_and_go(world, kept, unwatched):
    """MPI has few windows: the next call that needs one frees those that nobody uses."""
    before = len(windows._blocks)
    arrays = []
    for _ in range(30):
        with sfb.Comm(world) as comm:
            g = comm.shared((5, 6), np.float64)
            comm.Allreduce(sfb.Factors(np.ones((1, 5)), np.ones((1, 6))), g)
            np.testing.assert_array_equal(g, world.size)
        arrays = [*arrays, g][-kept:]
    assert len(windows._blocks) <= before + kept + 3
    with sfb.Comm(world) as comm:
        for _ in range(30):
            arrays = [*arrays, comm.shared((5, 6))][-kept:]
        assert len(windows._blocks) <= before + kept + 3
