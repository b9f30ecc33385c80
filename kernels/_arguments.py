"""What the kernels demand of arrays, and errors that say which argument does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfb.kernels.rules import Rule

__all__ = ["check_arrays", "check_factors", "check_rows", "states_of"]


def check_factors(u: np.ndarray, v: np.ndarray, out: np.ndarray, start: int, stop: int | None, first: int) -> int:
    """Return ``stop``, or raise what is wrong with arguments that a kernel does not take."""
    check_arrays(out, u=u, v=v)
    if np.may_share_memory(u, out) or np.may_share_memory(v, out):
        raise ValueError("u or v shares memory with what is to be changed")
    if u.shape[0] != v.shape[0] or out.shape[1] != v.shape[1]:
        raise ValueError(f"expected u m×K, v m×D and K×D, got {u.shape}, {v.shape} and {out.shape}")
    return check_rows(out, start, stop, first, u.shape[1])


def check_arrays(out: np.ndarray, *states: np.ndarray, **inputs: np.ndarray) -> None:
    """Raise TypeError unless the arrays are what the kernels are compiled for."""
    for name, array in {"the result": out, **{f"state {i}": s for i, s in enumerate(states)}, **inputs}.items():
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype not in (np.float32, np.float64):
            what = f"{array.ndim}-dimensional {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{name} must be a matrix of float32 or float64, got {what}")
        if array.dtype != out.dtype or not array.flags.c_contiguous or not array.flags.aligned:
            raise TypeError(f"{name} must be C-contiguous, aligned {out.dtype} like the result, got {array.dtype}")
        if name not in inputs and not array.flags.writeable:
            raise TypeError(f"{name} must be writeable")


def check_rows(out: np.ndarray, start: int, stop: int | None, first: int, given: int) -> int:
    """Return ``stop``, or raise if the rows do not lie in ``out`` and among the ``given`` ones from ``first`` on."""
    rows, end = out.shape[0], first + given
    low, high = max(0, first), min(rows, end)
    if stop is None:
        if (first >= 0 and end > rows) or (first <= 0 and end < rows):
            raise ValueError(f"rows {first} to {end} do not fit the {rows} rows of the array")
        start, stop = max(start, low), high
    if not low <= start <= stop <= high:
        raise ValueError(f"rows {start} to {stop} do not lie within rows {low} to {high}")
    return stop


def states_of(rule: Rule, w: np.ndarray, states: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Return two arrays to pass for the states; w, which is not touched as such, for those that the rule lacks.

    Args:
        rule: The rule.
        w: The parameter, K×D.
        states: The rule's states, K×D each.

    Raises:
        ValueError: A state is missing, or has another shape or dtype than w.

    >>> import numpy as np
    >>> from sfb.kernels import sgd, states_of
    >>> w, velocity = np.zeros((1, 2)), np.zeros((1, 2))
    >>> first, second = states_of(sgd(0.1, momentum=0.9), w, [velocity])
    >>> first is velocity, second is w
    (True, True)
    """
    both = [w, w]
    for i in range(rule.states):
        state = states[i] if i < len(states) else None
        if state is None or state.shape != w.shape or state.dtype != w.dtype:
            raise ValueError(f"the rule needs {rule.states} states of shape {w.shape} and dtype {w.dtype}")
        both[i] = state
    return both
