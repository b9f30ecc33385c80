"""Streams of random numbers, each with a state of one 64-bit word."""

import numpy as np

from sfb.kernels._compile import inner

__all__ = ["bits", "uniform"]


@inner
def bits(state):
    """Return the next 64 bits of a stream, an array of one element.

    SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 17.
    """
    z = state[0] + np.uint64(0x9E3779B97F4A7C15)
    state[0] = z
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@inner
def uniform(state):
    """Return the next number of a stream, at least 0 and below 1."""
    return (bits(state) >> np.uint64(11)) * 2.0**-53
