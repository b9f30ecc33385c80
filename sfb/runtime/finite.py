"""Whether arrays hold numbers only, and where they do not; no MPI."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfb.kernels.stages import compiled

__all__ = ["check_finite", "not_finite"]


def not_finite(array: np.ndarray) -> int:
    """Return the index, along the rows, of the first element that is NaN or infinite; −1 if there is none.

    Args:
        array: Of any dtype; elements that are no floating-point numbers are finite.
    """
    if array.dtype.kind not in "fc" or not array.size:
        return -1
    flat = array.reshape(-1)
    if array.dtype.kind == "c":
        found = not_finite(flat.view(flat.real.dtype))
        return found // 2 if found > 0 else found
    if flat.dtype in (np.float32, np.float64) and flat.dtype.isnative and flat.flags.c_contiguous:
        return int(compiled("checksum").first_not_finite(flat))
    wrong = np.flatnonzero(~np.isfinite(flat))
    return int(wrong[0]) if wrong.size else -1


def check_finite(name: str, array: Any) -> None:
    """Raise ValueError if an array, dense or CSR, holds NaN or infinity.

    Args:
        name: What the message calls the array.
        array: The array.

    >>> import numpy as np
    >>> from sfb.runtime.finite import check_finite
    >>> check_finite("u", np.array([[1.0, 2.0], [np.inf, 0.0]]))
    Traceback (most recent call last):
      ...
    ValueError: u holds inf at (1, 0), and check_finite is set
    """
    dense = isinstance(array, np.ndarray)
    values = array if dense else array.data[: array.indptr[-1]]
    index = not_finite(values)
    if index < 0:
        return
    if dense:
        place = tuple(map(int, np.unravel_index(index, array.shape)))
    else:
        place = int(np.searchsorted(array.indptr, index, side="right")) - 1, int(array.indices[index])
    text = f" at {place[0] if len(place) == 1 else place}" if place else ""
    raise ValueError(f"{name} holds {values.reshape(-1)[index]}{text}, and check_finite is set")
