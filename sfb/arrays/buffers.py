"""Buffers of mpi4py, of any form, as mpi4py reads them."""

from __future__ import annotations

import sys
from operator import index
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

__all__ = ["ANY", "BYTES", "KERNEL_TYPES", "UNKNOWN", "Message", "array_of", "dtype_of", "fit", "kind_name", "read"]

# The types of elements of the kernels, in the order of `sfb.kernels._lines.TYPES`, and others that ranks compare.
KERNEL_TYPES = ("f4", "f8", "i4", "i8")
_NAMES = (
    *KERNEL_TYPES,
    *[
        "b1",
        "S1",
        "i1",
        "u1",
        "i2",
        "u2",
        "u4",
        "u8",
        "f2",
        "f16",
        "c4",
        "c8",
        "c16",
        "c32",
        "U4",
        "V6",
        "V8",
        "V12",
        "V16",
        "V32",
    ],
)
_KINDS = {name: kind for kind, name in enumerate(_NAMES)}
BYTES = _KINDS["u1"]
# The kind of elements, and the bytes, of a buffer about which nothing is known: they fit all others.
ANY, UNKNOWN = len(_NAMES), -1


class Message(NamedTuple):
    """What a rank passes as one buffer.

    Attributes:
        nbytes: Bytes of one block; `UNKNOWN` if that cannot be told.
        kind: The type of its elements, `ANY` for a derived type, or if that cannot be told.
        entries: The number of elements of a block.
        datatype: MPI's type of the elements; null if it cannot be told.
        begin: Where the first block begins in memory; 0 if that cannot be told.
        end: Where the last block ends.
        vector: The elements of all blocks, if they are of a `KERNEL_TYPES` and one behind another; None otherwise.
    """

    nbytes: int = UNKNOWN
    kind: int = ANY
    entries: int = 0
    datatype: MPI.Datatype = MPI.DATATYPE_NULL
    begin: int = 0
    end: int = 0
    vector: np.ndarray | None = None


_UNKNOWN = Message()
_NATIVE = "<" if sys.byteorder == "little" else ">"
# Extent, size and kind of MPI's own types, by handle.
_known: dict[int, tuple[int, int, int]] = {}


def read(buffer: Any, blocks: int = 1, *, writeable: bool = False) -> Message:
    """Return what a buffer of mpi4py describes.

    Args:
        buffer: Anything that mpi4py takes: an object with memory, or a list or tuple of it, count, displacement, type.
        blocks: The blocks into which mpi4py divides the memory if the buffer holds no count, which is that of a block.
        writeable: Whether the buffer receives.

    Raises:
        Exception: The error of mpi4py, if the buffer is none.
    """
    try:
        message = _read(buffer, blocks, writeable)
    except _BlocksError as error:
        raise ValueError(str(error)) from None
    except Exception:  # wrong, or of a form that only mpi4py reads: it decides, without sending anything
        _check_by_mpi4py(buffer, writeable)
        return _sized(buffer, blocks)
    if message.kind == ANY:  # the type may lack a commit
        _check_by_mpi4py(buffer, writeable)
    return message


class _BlocksError(ValueError):
    """The memory cannot be divided into blocks."""


def _check_by_mpi4py(buffer: Any, writeable: bool) -> None:
    """Raise the error of mpi4py if a buffer is none."""
    prepare = MPI.COMM_SELF.Recv_init if writeable else MPI.COMM_SELF.Send_init
    prepare(buffer, 0).Free()


def _sized(buffer: Any, blocks: int) -> Message:
    """Return the size of a buffer that has no memory view, but mpi4py takes: one on a GPU, say."""
    try:
        memory, count, displacement, datatype = _unpack(buffer)
        nbytes = MPI.buffer.frombuffer(memory, readonly=True).nbytes
        if datatype is None:
            return Message(nbytes // blocks) if count is None else _UNKNOWN
        datatype = _datatype(datatype)
        extent, size, kind = _describe(datatype)
        if count is None:
            count = (nbytes // extent - index(displacement or 0)) // blocks
        return Message(index(count) * size, kind, index(count), datatype)
    except Exception:  # the size remains unknown
        return _UNKNOWN


def _read(buffer: Any, blocks: int, writeable: bool) -> Message:
    memory, count, displacement, datatype = _unpack(buffer)
    if memory is None or memory is MPI.BOTTOM:
        datatype = _datatype(datatype)
        _, size, kind = _describe(datatype)
        return Message(index(count or 0) * size, kind, index(count or 0), datatype)
    view = memoryview(memory)
    if not (view.c_contiguous or view.f_contiguous) or (writeable and view.readonly):
        raise BufferError
    datatype = _datatype(view.format if datatype is None else datatype)
    extent, size, kind = _describe(datatype)
    skipped = index(displacement or 0) * extent
    if not 0 <= skipped <= view.nbytes:
        raise ValueError
    if count is None:
        entries, rest = divmod(view.nbytes - skipped, extent)
        if rest:
            raise ValueError
        count, rest = divmod(entries, blocks)
        if rest:
            raise _BlocksError(
                f"message: cannot infer count, number of entries {entries} is not a multiple of required number of "
                f"blocks {blocks}"
            )
    count = index(count)
    if count < 0:
        raise ValueError
    nbytes = count * extent * blocks
    if not (view.c_contiguous and 0 < nbytes <= view.nbytes - skipped):
        return Message(count * size, kind, count, datatype)
    raw = np.frombuffer(memory, np.uint8)[skipped : skipped + nbytes]
    begin = raw.ctypes.data
    vector = raw.view(KERNEL_TYPES[kind]) if kind < len(KERNEL_TYPES) else None
    return Message(count * size, kind, count, datatype, begin, begin + nbytes, vector)


def _unpack(buffer: Any) -> tuple[Any, Any, Any, Any]:
    """Return memory, count, displacement and type of a buffer, each None if it is not given."""
    if not isinstance(buffer, (list, tuple)):
        return buffer, None, None, None
    memory, *rest = buffer
    if not 1 <= len(rest) <= 3:
        raise ValueError
    datatype = rest.pop() if len(rest) > 1 or isinstance(rest[0], (MPI.Datatype, str)) else None
    count, displacement = (*rest, None, None)[:2]
    if len(rest) == 1 and isinstance(count, (list, tuple)):
        count, displacement = count
    return memory, count, displacement, datatype


def _datatype(described: Any) -> MPI.Datatype:
    """Return the type of a specification, or of a format of Python's buffers."""
    if isinstance(described, MPI.Datatype):
        return described
    if described == "B":
        return MPI.BYTE
    return MPI.Datatype.fromcode(described[1:] if described[:1] in ("@", _NATIVE) else described)


def _describe(datatype: MPI.Datatype) -> tuple[int, int, int]:
    """Return the extent, the size and the kind of a type."""
    found = _known.get(datatype.handle)
    if found is None:
        predefined = datatype.is_predefined
        found = datatype.extent, datatype.size, _KINDS.get(datatype.typestr, ANY) if predefined else ANY
        if predefined:
            _known[datatype.handle] = found
    return found


def array_of(buffer: Any) -> np.ndarray | None:
    """Return the array of ``[array, type]`` if that is the type of its elements; faster than `read`."""
    if type(buffer) not in (list, tuple) or len(buffer) != 2:
        return None
    array, datatype = buffer
    if type(array) is not np.ndarray or not isinstance(datatype, MPI.Datatype):
        return None
    return array if _DTYPES.get(datatype.handle) is array.dtype else None


_DTYPES = {datatype.handle: np.dtype(datatype.typestr) for datatype in (MPI.FLOAT, MPI.DOUBLE, MPI.INT, MPI.LONG)}


def kind_name(kind: int) -> str:
    """Return the name of a type of elements, for messages."""
    return "elements" if kind == ANY else np.dtype(_NAMES[kind]).name


def dtype_of(buffer: Any) -> np.dtype[Any] | None:
    """Return the type of a buffer's elements, the same on all ranks of a call; None if NumPy has no name for it."""
    if isinstance(buffer, np.ndarray):
        return buffer.dtype
    try:
        memory, _, _, datatype = _unpack(buffer)
        return np.dtype(_datatype(memoryview(memory).format if datatype is None else datatype).typestr)
    except Exception:  # MPI will say what is wrong with it
        return None


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
