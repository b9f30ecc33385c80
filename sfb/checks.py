"""What the library demands of arrays; the checks communicate nothing."""

from __future__ import annotations

import sys
from math import prod
from operator import index
from typing import Any

import numpy as np

__all__ = [
    "FLOATS",
    "check_csr",
    "check_matrix",
    "check_receiver",
    "is_canonical",
    "is_csr",
    "is_matrix",
    "is_receiver",
    "is_sparse",
    "shareable",
]

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_BEHAVED = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED
_WRITEABLE = _BEHAVED | 0x0400
# Columns of a CSR matrix are numbered by int32.
_MOST_COLUMNS = (1 << 31) - 1


def is_matrix(array: Any) -> bool:
    """Return whether ``array`` passes `check_matrix`; fast, since every call asks."""
    return (
        type(array) is np.ndarray
        and array.ndim == 2
        and (array.dtype is FLOATS[0] or array.dtype is FLOATS[1])
        and array.flags.num & _BEHAVED == _BEHAVED
    )


def is_receiver(array: Any) -> bool:
    """Return whether ``array`` passes `check_receiver`; fast, since every call asks."""
    return is_matrix(array) and array.flags.num & _WRITEABLE == _WRITEABLE


def is_sparse(value: Any) -> bool:
    """Return whether ``value`` is a SciPy sparse matrix or array; does not import SciPy."""
    module = sys.modules.get("scipy.sparse")
    return module is not None and module.issparse(value)


def is_csr(value: Any) -> bool:
    """Return whether ``value`` is a SciPy CSR matrix or array; does not import SciPy."""
    return is_sparse(value) and value.format == "csr"


def check_csr(name: str, v: Any) -> None:
    """Check that ``v`` is a CSR matrix of native float32 or float64 whose parts fit each other.

    Raises:
        TypeError: ``v`` is not CSR, or not of float32 or float64.
        ValueError: ``v`` is not two-dimensional, its parts do not fit, or it has 2³¹ columns or more.
    """
    if not is_csr(v):
        raise TypeError(f"{name} must be a NumPy array or a SciPy CSR matrix, got {v.format}; convert it with .tocsr()")
    if len(v.shape) != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {v.shape}")
    if v.data.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64, got {v.data.dtype.str} ({v.data.dtype}); use .astype")
    rows, columns = v.shape
    starts, indices = v.indptr, v.indices
    if columns > _MOST_COLUMNS:
        raise ValueError(f"{name} must have fewer than 2³¹ columns, got {columns}")
    if {starts.dtype.kind, indices.dtype.kind} != {"i"} or len(starts) != rows + 1:
        raise ValueError(f"{name} is no CSR matrix: indptr must have {rows + 1} integers, got {starts!r}")
    nonzeros = int(starts[-1])
    if starts[0] != 0 or (starts[1:] < starts[:-1]).any() or nonzeros > min(len(indices), len(v.data)):
        raise ValueError(f"{name} is no CSR matrix: indptr must rise from 0 to the number of non-zeros")
    used = indices[:nonzeros]
    if nonzeros and not (used.min() >= 0 and used.max() < columns):
        raise ValueError(f"{name} is no CSR matrix: its indices must lie in 0 to {columns - 1}")


def is_canonical(v: Any) -> bool:
    """Return whether the columns of each row of a CSR matrix rise, so that none occurs twice."""
    starts, indices = v.indptr, v.indices[: v.indptr[-1]]
    rises = indices[1:] > indices[:-1]
    rises[starts[(starts > 0) & (starts < len(indices))] - 1] = True  # from one row to the next
    return bool(rises.all())


def check_matrix(name: str, array: Any, *, contiguous: bool = True) -> None:
    """Check that ``array`` is a matrix of native float32 or float64.

    Args:
        name: What the user calls the array, for the message.
        array: The value to check.
        contiguous: Whether to demand C order and alignment, too.

    Raises:
        TypeError: ``array`` is not a NumPy array of float32 or float64.
        ValueError: ``array`` is not two-dimensional, not C-contiguous, or not aligned.
    """
    if not isinstance(array, np.ndarray):
        if hasattr(array, "__cuda_array_interface__"):
            raise TypeError(f"{name} lies in GPU memory; copy it to a NumPy array on the host first")
        if is_sparse(array):
            raise TypeError(f"{name} must be a NumPy array, got a sparse {array.format} one; use .toarray()")
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}; convert it with numpy.asarray")
    if isinstance(array, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"{name} must be a plain NumPy array, got {type(array).__name__}; convert it first")
    if array.dtype not in FLOATS:
        native = array.dtype.isnative or array.dtype.newbyteorder("=") not in FLOATS
        remedy = "convert it with .astype" if native else "convert it to native byte order with .astype"
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype.str} ({array.dtype}); {remedy}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {array.shape}")
    if contiguous and not array.flags.c_contiguous:
        order = "Fortran-ordered" if array.flags.f_contiguous else "not contiguous"
        raise ValueError(f"{name} must be C-contiguous, got an array that is {order}; copy it on purpose")
    if contiguous and not array.flags.aligned:
        raise ValueError(f"{name} must be aligned to its {array.itemsize}-byte elements; copy it on purpose")


def check_receiver(name: str, array: Any) -> None:
    """Check that ``array`` can receive a K×D sum.

    Raises:
        TypeError: See `check_matrix`.
        ValueError: See `check_matrix`; or ``array`` is read-only.
    """
    check_matrix(name, array)
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")


def shareable(shape: Any, dtype: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return a shape and a dtype of an array in shared memory, as NumPy reads them.

    >>> from sfb.checks import shareable
    >>> shareable(3, "float32")
    ((3,), dtype('float32'))

    Args:
        shape: An integer or a sequence of integers ≥ 0.
        dtype: Anything that NumPy takes for a dtype.

    Raises:
        TypeError: ``shape`` is no shape, or elements of ``dtype`` have no fixed size in memory.
        ValueError: A size is negative, or the array does not fit into memory.
    """
    try:
        sizes: tuple[int, ...] = (index(shape),)
    except TypeError:
        sizes = tuple(index(n) for n in shape)
    kind = np.dtype(dtype)
    if any(n < 0 for n in sizes):
        raise ValueError(f"shape must have no negative sizes, got {sizes}")
    if kind.hasobject or kind.itemsize == 0 or kind.subdtype is not None:
        raise TypeError(f"an array of {kind!r} cannot be shared: its elements have no fixed size in memory")
    if prod(sizes) * kind.itemsize > np.iinfo(np.intp).max:
        raise ValueError(f"an array of shape {sizes} and {kind} does not fit into memory")
    return sizes, kind
