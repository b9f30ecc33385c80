"""MAX and MIN of floating-point arrays as functions for MPI_Op_create: NaN wins, as in NumPy.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import carray, cfunc, types

__all__ = ["address"]


def _user_function(dtype, largest):
    """Make an MPI_User_function: result[i] ← the larger, or the smaller, of given[i] and result[i]."""

    def reduce(given, result, count, datatype):
        x, y = carray(given, count[0], dtype), carray(result, count[0], dtype)
        for i in range(count[0]):
            wins = x[i] > y[i] if largest else x[i] < y[i]
            y[i] = x[i] if wins or x[i] != x[i] else y[i]

    signature = types.void(types.voidptr, types.voidptr, types.CPointer(types.intc), types.voidptr)
    try:
        return cfunc(signature, cache=True)(reduce)
    except RuntimeError:  # Numba finds no folder for its cache
        return cfunc(signature)(reduce)


_FUNCTIONS = {
    (np.dtype(dtype), largest): _user_function(dtype, largest)
    for dtype in (np.float32, np.float64)
    for largest in (False, True)
}


def address(dtype: np.dtype, *, largest: bool) -> int:
    """Return the address of the function for float32 or float64: that of MAX if ``largest``, else that of MIN."""
    return _FUNCTIONS[dtype, largest].address
