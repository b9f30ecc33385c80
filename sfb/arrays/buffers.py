"""What callers pass to collectives of plain arrays: sizes, and which buffers fit each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

__all__ = ["dtype_of", "fit", "gathers", "nbytes_of", "scatters"]

# Bytes of a rank's part from which `MPI.Intracomm.Reduce_scatter_block` and `Allgather` are not left to MPI, and bytes
# of all parts up to which the latter is not.
_SCATTERED, _GATHERED, _MOST_GATHERED = 1 << 12, 1 << 15, 1 << 20


def scatters(recvbuf: Any) -> bool:
    """Return whether `Arrays.reduce_scatter` is faster than MPI; the same on all ranks of a call."""
    return nbytes_of(recvbuf) >= _SCATTERED


def gathers(recvbuf: Any, ranks: int) -> bool:
    """Return whether `Arrays.allgather` is faster than MPI; the same on all ranks of a call."""
    return _GATHERED * ranks <= nbytes_of(recvbuf) <= _MOST_GATHERED


def fit(send: np.ndarray, recv: np.ndarray, times: int = 1) -> bool:
    """Return whether ``send``, which has to have ``times`` as many elements, can be reduced into ``recv``."""
    if send is recv:
        return recv.flags.carray
    return (
        send.dtype == recv.dtype
        and send.size == recv.size * times
        and recv.flags.carray
        and send.flags.c_contiguous
        and send.flags.aligned
        and not np.may_share_memory(send, recv)
    )


def nbytes_of(buffer: Any) -> int:
    """Return the bytes that a buffer of mpi4py describes, the same on all ranks of a call; 0 if they cannot be told."""
    if isinstance(buffer, np.ndarray):
        return buffer.nbytes
    try:
        if not isinstance(buffer, (list, tuple)):
            return MPI.buffer.frombuffer(buffer, readonly=True).nbytes
        data, *rest = buffer
        kind = rest.pop() if rest and isinstance(rest[-1], (MPI.Datatype, str)) else None
        if isinstance(kind, str):
            kind = MPI.Datatype.fromcode(kind)
        if not rest or rest[0] is None:
            whole = nbytes_of(data)
            return whole if kind is None else whole // kind.extent * kind.size
        count = rest[0][0] if isinstance(rest[0], (list, tuple)) else rest[0]
        return int(count) * (np.asarray(data).itemsize if kind is None else kind.size)
    except Exception:  # MPI will say what is wrong with it
        return 0


def dtype_of(buffer: Any) -> np.dtype[Any] | None:
    """Return the type of a buffer's elements, the same on all ranks of a call; None if NumPy has no name for it."""
    if isinstance(buffer, np.ndarray):
        return buffer.dtype
    try:
        if not isinstance(buffer, (list, tuple)):
            return np.asarray(buffer).dtype
        data, *rest = buffer
        kind = rest[-1] if rest else None
        if isinstance(kind, str):
            kind = MPI.Datatype.fromcode(kind)
        return np.dtype(kind.typestr) if isinstance(kind, MPI.Datatype) else dtype_of(data)
    except Exception:  # MPI will say what is wrong with it
        return None
