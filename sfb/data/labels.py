"""Labels as classes, by one rule for all formats, and labels as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfb.data.errors import DataError, brief
from sfb.data.source import Locate, sample

__all__ = ["Codes", "check", "encode", "unite"]

# The whole numbers that float64 tells apart.
_EXACT = 2.0**53
_ANYWHERE = sample(0)


def encode(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, the distinct labels in ascending order, and for each sample the index of its class, int64.

    Args:
        labels: N integers, negative or with gaps as may be, whole numbers in floating point, bools or strings; or N×1
            of these; or N×K, of which each row has a single 1 beside zeros.

    Raises:
        DataError: The labels are of another kind, fractions, say, or all the same.

    >>> import numpy as np
    >>> import sfb.data
    >>> sfb.data.encode(np.array([42, 3, 3, -17]))
    (array([-17,   3,  42]), array([2, 1, 1, 0]))
    """
    classes, indices = np.unique(check(labels, "classes"), return_inverse=True)
    _several(classes)
    return classes, indices.astype(np.int64)


def check(labels: np.ndarray, targets: str, locate: Locate = _ANYWHERE) -> np.ndarray:
    """Return labels in the form that `Block` has.

    Args:
        labels: S labels, S×1, or S×T: one-hot rows, or T numbers a sample.
        targets: "classes" or "numbers".
        locate: Says where a row is.

    Raises:
        DataError: They are no such labels.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if targets == "numbers":
        return _numbers(labels, locate)
    if labels.ndim == 2:
        return _hot(labels, locate)
    if labels.ndim != 1:
        raise DataError(f"expected a label a sample, got labels of shape {labels.shape}")
    if labels.dtype.kind not in "fiubUS":
        raise DataError(f"labels must be integers or strings, got {labels.dtype}")
    return _whole(labels, locate) if labels.dtype.kind == "f" else labels


def _whole(labels: np.ndarray, locate: Locate) -> np.ndarray:
    """Return whole numbers in floating point as integers."""
    odd = np.flatnonzero(~(np.isfinite(labels) & (labels == np.round(labels))))
    if odd.size:
        raise DataError(
            f"{locate(int(odd[0]))} has the label {labels[odd[0]]:g}: labels must name classes, integers or strings. "
            'Take regression targets by targets="numbers" (--targets numbers), or divide them into classes by '
            "numpy.digitize"
        )
    if labels.size and np.abs(labels).max() >= _EXACT:
        raise DataError(f"labels of {labels.dtype} must be below 2⁵³ in magnitude; save them as integers")
    return labels.astype(np.int64)


def _hot(labels: np.ndarray, locate: Locate) -> np.ndarray:
    """Return the column of the 1 in each row."""
    good = labels.dtype.kind in "fiub"
    ones = labels == 1
    odd = np.flatnonzero((ones.sum(axis=1) != 1) | (np.count_nonzero(labels, axis=1) != 1)) if good else np.arange(1)
    if odd.size:
        raise DataError(
            f"labels of shape (N, {labels.shape[1]}) must be one-hot, a single 1 a row beside zeros; "
            f"{locate(int(odd[0]))} has {brief(labels[odd[0]])}"
        )
    return np.argmax(ones, axis=1).astype(np.int64)


def _numbers(labels: np.ndarray, locate: Locate) -> np.ndarray:
    if labels.dtype.kind not in "fiub" or labels.ndim not in (1, 2):
        raise DataError(f"targets must be numbers, one or several a sample; got {labels.dtype} of shape {labels.shape}")
    values = labels.astype(np.float64)
    odd = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if odd.size:
        raise DataError(f"{locate(int(odd[0]))} has the target {labels[odd[0]]}, which is not a finite number")
    return values


class Codes:
    """Labels of which not all are known yet, numbered in the order in which they come.

    Attributes:
        distinct: The labels that have come.
    """

    def __init__(self) -> None:
        self.distinct = np.empty(0, np.int64)
        self._numbers: dict[object, int] = {}

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Return the number of each label, int32."""
        found, indices = np.unique(labels, return_inverse=True)
        numbers = np.empty(len(found), np.int32)
        new: list[int] = []
        for i, label in enumerate(found.tolist()):
            known = self._numbers.setdefault(label, len(self._numbers))
            numbers[i] = known
            if known == len(self.distinct) + len(new):
                new.append(i)
        if new:
            self.distinct = np.concatenate([self.distinct, found[new]]) if self.distinct.size else found[new]
        return numbers[indices]


def unite(parts: Sequence[np.ndarray], *, untyped: bool = False) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the classes of all parts, in ascending order, and for each part the class of each of its labels, int64.

    Args:
        parts: The distinct labels of each part.
        untyped: Whether labels are text, as in CSV; they are integers then if all of them can be.

    Raises:
        DataError: The labels are fractions, or all the same.

    >>> import numpy as np
    >>> from sfb.data import unite
    >>> unite([np.array(["10", "9"]), np.array(["9", "-1"])], untyped=True)
    (array([-1,  9, 10]), [array([2, 1]), array([1, 0])])
    """
    filled = [part for part in parts if part.size]
    labels = np.concatenate(filled) if filled else np.empty(0, np.int64)
    if untyped:
        labels = _typed(labels)
    classes, indices = np.unique(labels, return_inverse=True)
    _several(classes)
    ends = np.cumsum([part.size for part in parts])[:-1]
    return classes, np.split(indices.astype(np.int64), ends)


def _typed(labels: np.ndarray) -> np.ndarray:
    """Return text as integers if all of it is numbers."""
    for kind in (np.int64, np.float64):
        try:
            numbers = labels.astype(kind)
        except (ValueError, OverflowError):
            continue
        return check(numbers, "classes", lambda row: "a sample")
    return labels


def _several(classes: np.ndarray) -> None:
    """Raise DataError unless there are several classes."""
    if len(classes) == 1:
        raise DataError(f"all samples have the same label, {brief(classes[0])}")
