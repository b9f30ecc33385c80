"""Labels as classes, by one rule for all formats."""

from __future__ import annotations

import numpy as np

from sfb.data.errors import DataError, brief

__all__ = ["encode"]

# The whole numbers that float64 tells apart.
_EXACT = 2.0**53


def encode(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, the distinct labels in ascending order, and for each sample the index of its class, int64.

    Args:
        labels: N integers, negative or with gaps as may be, whole numbers in floating point, bools or strings.

    Raises:
        DataError: The labels are of another kind, fractions, say, or all the same.

    >>> import numpy as np
    >>> import sfb.data
    >>> sfb.data.encode(np.array([42, 3, 3, -17]))
    (array([-17,   3,  42]), array([2, 1, 1, 0]))
    """
    if labels.dtype.kind not in "fiubUS":
        raise DataError(f"labels must be integers or strings, got {labels.dtype}")
    if labels.dtype.kind == "f":
        odd = np.flatnonzero(~(np.isfinite(labels) & (labels == np.round(labels))))
        if odd.size:
            raise DataError(
                f"sample {odd[0]} has the label {labels[odd[0]]:g}: labels must name classes, by integers or strings; "
                "divide regression targets into classes first, by numpy.digitize for instance"
            )
        if labels.size and np.abs(labels).max() >= _EXACT:
            raise DataError(f"labels of {labels.dtype} must be below 2⁵³ in magnitude; save them as integers")
        labels = labels.astype(np.int64)
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) == 1:
        raise DataError(f"all samples have the same label, {brief(classes[0])}")
    return classes, indices.astype(np.int64)
