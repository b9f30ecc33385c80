"""Sums over elements and over rows."""

import numpy as np
from numba import types

from sfb.kernels._blocks import matrix, signatures
from sfb.kernels._compile import kernel

__all__ = ["inner_product", "reduce"]


@kernel(signatures(lambda t: types.float64(matrix(t), matrix(t))))
def inner_product(a, b):
    """Return Σ aᵢⱼ·bᵢⱼ, one term after the other, in float64."""
    total = 0.0
    for k in range(a.shape[0]):
        for c in range(a.shape[1]):
            total += np.float64(a[k, c]) * np.float64(b[k, c])
    return total


@kernel(signatures(lambda t: types.void(matrix(t), types.int64, types.int64)))
def reduce(parts, start, stop):
    """Set elements of the first row of ``parts`` to the sums of those of all rows, in the order of rows."""
    block = 4096 // parts.itemsize
    for left in range(start, stop, block):
        right = min(left + block, stop)
        total = parts[0, left:right]
        for r in range(1, parts.shape[0]):
            term = parts[r, left:right]
            for c in range(right - left):
                total[c] += term[c]
