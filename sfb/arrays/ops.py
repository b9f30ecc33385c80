"""The operations that MPI uses on plain arrays."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.buffers import dtype_of

__all__ = ["op_for_mpi"]

_LARGEST = {MPI.MAX.handle: True, MPI.MIN.handle: False}
_TYPES = np.dtype(np.float32), np.dtype(np.float64)


def op_for_mpi(op: Any, recvbuf: Any) -> Any:
    """Return the operation that MPI is to use where a user passes ``op``; the same on all ranks of a call.

    MAX and MIN of float32 and float64 become operations of this library in which NaN wins, as in NumPy and within a
    node. MPI does not define what its own make of NaN; implementations keep it or not, depending on the rank that has
    it.
    """
    largest = _LARGEST.get(op.handle) if isinstance(op, MPI.Op) else None
    if largest is None:
        return op
    dtype = dtype_of(recvbuf)
    return op if dtype not in _TYPES else _op(dtype, largest)


@functools.cache
def _op(dtype: np.dtype[Any], largest: bool) -> MPI.Op:
    """Return MAX or MIN of a type, compiled so that MPI calls it without Python where Numba works."""
    try:
        from sfb.kernels import ops
    except Exception:  # whoever needs the kernels says why
        return MPI.Op.Create(_by_numpy(dtype, largest), commute=True)
    op = MPI.Op()
    create = ctypes.CDLL(MPI.__file__).MPI_Op_create  # that of the MPI that mpi4py is linked with
    code = create(ctypes.c_void_p(ops.address(dtype, largest=largest)), 1, ctypes.c_void_p(MPI._addressof(op)))
    if code != MPI.SUCCESS:
        raise MPI.Exception(code)
    return op


def _by_numpy(dtype: np.dtype[Any], largest: bool) -> Callable[[Any, Any, MPI.Datatype], None]:
    combine = np.maximum if largest else np.minimum

    def call(given: Any, result: Any, datatype: MPI.Datatype) -> None:
        y = np.frombuffer(result, dtype)
        combine(np.frombuffer(given, dtype), y, out=y)

    return call
