"""Reference results, in NumPy and float64: those of ``sfb soak``, and a comparison of bits."""

from hashlib import blake2b

from sfb.soak.oracle import adagrad, adam, bound, draw, proximal, rounding, sgd, total

__all__ = ["adagrad", "adam", "assert_same_bits", "bound", "draw", "proximal", "rounding", "sgd", "total"]


def assert_same_bits(world, array):
    """Assert that every rank holds the same bits."""
    assert len(set(world.allgather(blake2b(array.tobytes()).digest()))) == 1
