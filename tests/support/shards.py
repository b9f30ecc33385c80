"""Samples, and the shards of them that ranks take."""

from __future__ import annotations

import numpy as np

SAMPLES = 150


def alone():
    """Return the communicator of this process alone."""
    from mpi4py import MPI

    return MPI.COMM_SELF


def digits(classes=10):
    """Return some pixels of the first digits, with text for labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True, n_class=classes)
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    return x[:SAMPLES, 10:54:3] / 16, names[y[:SAMPLES]]


def shard(world, *arrays, among=None):
    """Return every P-th sample of this rank; none if it is not ``among`` the ranks that have any."""
    among = list(range(world.size)) if among is None else among
    step = len(among)
    start = among.index(world.rank) if world.rank in among else len(arrays[0])
    return tuple(array[start::step] for array in arrays)


def in_batches(world, batch, *arrays):
    """Return the samples in the order in which one process takes the batches of all ranks, and the shards of them.

    A batch takes ``batch // P`` samples of each rank.

    Returns:
        The arrays for one process, those of this rank, and the samples of a batch.
    """
    per_rank = batch // world.size
    steps = len(arrays[0]) // (per_rank * world.size)
    together, mine = [], []
    for array in arrays:
        rest = array.shape[1:]
        parts = array[: steps * per_rank * world.size].reshape(steps, world.size, per_rank, *rest)
        together.append(parts.reshape(-1, *rest))
        mine.append(parts[:, world.rank].reshape(-1, *rest))
    return tuple(together), tuple(mine), per_rank * world.size
