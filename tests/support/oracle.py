"""Reference results, in NumPy and float64: those of ``sfb soak``, and a comparison of bits."""

from hashlib import blake2b

from sfb.soak.oracle import adagrad, adam, bound, draw, proximal, rounding, sgd, total

__all__ = [
    "adagrad",
    "adam",
    "assert_same_bits",
    "bound",
    "draw",
    "proximal",
    "rounding",
    "sgd",
    "sums_alike",
    "total",
]


def assert_same_bits(world, array):
    """Assert that every rank holds the same bits."""
    assert len(set(world.allgather(blake2b(array.tobytes()).digest()))) == 1


def sums_alike(comm):
    """Return whether blocking and nonblocking sums between the nodes of a Comm have the same bits.

    Open MPI adds in another order in Iallreduce than in Allreduce, on three ranks and more.
    """
    from mpi4py import MPI

    return comm.node.size == comm.size or comm.size < 3 or not MPI.Get_library_version().startswith("Open MPI")
