"""Shards of samples, and batches of all ranks, for tests of estimators."""

import numpy as np

__all__ = ["alone", "in_batches", "shard"]


def alone():
    """Return a communicator of this process."""
    from mpi4py import MPI

    return MPI.COMM_SELF


def shard(world, *arrays):
    """Return every P-th sample of this rank, of each array."""
    return tuple(array[world.rank :: world.size] for array in arrays)


def in_batches(world, batch, *arrays):
    """Return samples in the order in which one process takes them in batches, and those of this rank.

    A batch takes ``batch // P`` samples from each of P ranks. The arrays lose what fills no batch.
    """
    each = batch // world.size
    steps = len(arrays[0]) // (each * world.size)
    everything, mine = [], []
    for array in arrays:
        parts = array[: steps * each * world.size].reshape(steps, world.size, each, *array.shape[1:])
        everything.append(parts.reshape(-1, *array.shape[1:]))
        mine.append(np.ascontiguousarray(parts[:, world.rank].reshape(-1, *array.shape[1:])))
    return everything, mine, each * world.size
