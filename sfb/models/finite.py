"""Which sample holds a value that is no finite number, for messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["check_narrowed", "naming_samples"]


@contextmanager
def naming_samples(x: Any, y: Any = None, *, x_name: str = "X", y_name: str = "y") -> Iterator[None]:
    """Let the ValueError of a check say which sample of this rank holds NaN, infinity or too large a value.

    Args:
        x: N×D features, or an array of samples with more dimensions; what the block of the ``with`` statement checks.
        y: N or N×M targets, if any.
        x_name: What scikit-learn's messages call ``x``.
        y_name: What they call ``y``.

    Raises:
        ValueError: The block raised one. Its message begins as scikit-learn's does.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        for name, given in ((f"Input {x_name} ", x), (f"Input {y_name} ", y)):
            found = _place(given) if text.startswith(f"{name}contains ") else None
            if found is not None:
                first, *_ = text.splitlines()
                raise ValueError(f"{first.rstrip('.')}: {found}; finite numbers are needed") from error
        raise


def check_narrowed(x: Any, dtype: Any, *, name: str = "X") -> None:
    """Raise ValueError, with the sample, if finite values become infinite in another type.

    Args:
        x: Features, targets or weights of N samples, an array or a CSR matrix.
        dtype: The type that they are to have.
        name: What the message calls ``x``.
    """
    kind = np.dtype(dtype)
    values = x if isinstance(x, np.ndarray) else x.data
    if values.dtype.itemsize > kind.itemsize and values.size:
        limit = float(np.finfo(kind).max)
        if np.abs(values).max() > limit:
            raise ValueError(
                f"Input {name} contains a value too large for {kind}: {_place(x, limit)}; {kind} ends at {limit:.1e}: "
                "scale the values"
            )


def _place(x: Any, limit: float = np.inf) -> str | None:
    """Return the first value that is NaN or beyond a limit and where it is, in words; None if there is none."""
    if x is None:
        return None
    try:
        if hasattr(x, "tocsr"):
            rows = x.tocsr()
            bad = np.flatnonzero(~(np.abs(rows.data) <= limit) | np.isinf(rows.data))
            if not bad.size:
                return None
            sample = int(np.searchsorted(rows.indptr, bad[0], side="right")) - 1
            return _words(rows.data[bad[0]], sample, int(rows.indices[bad[0]]))
        array = np.asarray(x, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    places = np.argwhere(~(np.abs(array) <= limit) | np.isinf(array))
    if not len(places) or not array.ndim:
        return None
    sample, *rest = places[0].tolist()
    return _words(array[tuple(places[0])], sample, rest[-1] if rest else None)


def _words(value: Any, sample: int, feature: int | None) -> str:
    where = f"sample {sample} of this rank"
    return f"{value} in {where} (from 0)" if feature is None else f"{value} in {where}, column {feature} (both from 0)"
