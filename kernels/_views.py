"""Arrays bound to the words of an int64 array. Each argument slows the call of a kernel; a bound array does not."""

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from sfb.kernels._compile import inner
from sfb.kernels._vectors import flat

__all__ = ["VIEW", "describe", "matrix_at", "words_at"]

# Words that describe an array: its address, rows and columns.
VIEW = 3


def describe(array):
    """Return the words that describe a C-contiguous array of one or two dimensions; the caller keeps it alive."""
    return [array.ctypes.data, *np.atleast_2d(array).shape]


@intrinsic
def _view(typing_context, like, address, rows, columns):
    """Return the matrix at an address, of the element type of ``like``; it does not keep its memory alive."""
    result = types.Array(like.dtype, 2, "C")

    def generate(context, builder, signature, arguments):
        item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(like.dtype)))
        array = make_array(result)(context, builder)
        data = builder.inttoptr(arguments[1], context.get_data_type(like.dtype).as_pointer())
        shape = list(arguments[2:])
        populate_array(array, data, shape, [builder.mul(shape[1], item), item], item, None)
        return array._getvalue()

    return result(like, types.int64, types.int64, types.int64), generate


@inner
def matrix_at(words, at, like):
    """Return the matrix that three words describe, of the element type of ``like``."""
    return _view(like, words[at], words[at + 1], words[at + 2])


@inner
def words_at(words, at):
    """Return the vector of int64 that three words describe."""
    return flat(matrix_at(words, at, words))
