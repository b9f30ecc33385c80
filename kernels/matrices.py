"""Products of factors and update rules that take them, in rows of a matrix, by one thread or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sfb.kernels._arguments import check_arrays, check_factors, check_rows, states_of
from sfb.kernels._scratch import local, scratch
from sfb.kernels._threads import share
from sfb.kernels.norms import balanced, norm_from, squares_fit
from sfb.kernels.rules import ASSIGN, SGD, Rule
from sfb.kernels.stages import compiled
from sfb.kernels.status import DONE

__all__ = [
    "accumulate",
    "norm",
    "norm_dense",
    "project_rows",
    "rebuild",
    "reduce",
    "shrink_rows",
    "update",
    "update_dense",
]

# Stands for the end of the rows.
_ALL = -1
# From this to its inverse, sums of squares in float64 have lost nothing to underflow or overflow.
_LEAST = 2.0**-960
# Errors of calls with arguments that no kernel is compiled for.
_REFUSED = (TypeError, KeyError, AttributeError, IndexError)


def rebuild(
    u: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    *,
    alpha: float = 1.0,
    threads: int = 1,
) -> None:
    """Set rows of g to those of α·uᵀv.

    Args:
        u: m×K, C-contiguous float32 or float64; m may be 0. Or some of these columns, from ``first`` on.
        v: m×D, C-contiguous, of the same type.
        g: K×D, C-contiguous and writeable; shares no memory with u or v.
        start: First row.
        stop: End of the rows; all that u has by default.
        first: The row of g that column 0 of u belongs to; negative if g lacks that row and others after it.
        alpha: Factor of the product.
        threads: The most threads that share the rows.

    Raises:
        ValueError: Shapes that do not fit, or rows out of range.
        TypeError: Dtypes, orders or read-only arrays that the kernels do not take.

    >>> import numpy as np
    >>> from sfb.kernels import rebuild
    >>> g = np.empty((2, 3))
    >>> rebuild(np.array([[1.0, 2.0]]), np.ones((1, 3)), g)
    >>> g
    array([[1., 1., 1.],
           [2., 2., 2.]])
    """
    _accumulate(u, v, g, start, stop, first, False, alpha, 0.0, threads)


def accumulate(
    u: np.ndarray,
    v: np.ndarray,
    w: np.ndarray,
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    threads: int = 1,
) -> None:
    """Set rows of w to those of β·w + α·uᵀv.

    Args:
        u: m×K, as in `rebuild`.
        v: m×D, as in `rebuild`.
        w: K×D, C-contiguous and writeable; shares no memory with u or v.
        start: First row.
        stop: End of the rows; all that u has by default.
        first: As in `rebuild`.
        alpha: Factor of the product.
        beta: Factor of w.
        threads: The most threads that share the rows.

    Raises:
        ValueError, TypeError: As `rebuild` does.

    >>> import numpy as np
    >>> from sfb.kernels import accumulate
    >>> w = np.ones((2, 2))
    >>> accumulate(np.array([[1.0, 2.0]]), np.ones((1, 2)), w, alpha=-0.5)
    >>> w
    array([[0.5, 0.5],
           [0. , 0. ]])
    """
    _accumulate(u, v, w, start, stop, first, True, alpha, beta, threads)


def update(
    rule: Rule,
    u: np.ndarray,
    v: np.ndarray,
    w: np.ndarray,
    states: Sequence[np.ndarray | None] = (),
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    *,
    alpha: float = 1.0,
    threads: int = 1,
) -> None:
    """Let a rule take the gradient α·uᵀv in rows of w, in one pass; the gradient is never stored.

    Args:
        rule: `assign`, `sgd`, `adam`, `adagrad` or `proximal`.
        u: m×K, as in `rebuild`.
        v: m×D, as in `rebuild`.
        w: K×D, C-contiguous and writeable.
        states: The K×D arrays like w that the rule keeps.
        start: First row.
        stop: End of the rows; all by default.
        first: As in `rebuild`.
        alpha: Factor of the gradient.
        threads: The most threads that share the rows.

    Raises:
        ValueError: Shapes or states that do not fit, or rows out of range.
        TypeError: As `rebuild` does.

    >>> import numpy as np
    >>> from sfb.kernels import sgd, update
    >>> w = np.zeros((1, 2))
    >>> update(sgd(0.5), np.ones((1, 1)), np.array([[1.0, 2.0]]), w)
    >>> w
    array([[-0.5, -1. ]])
    """
    if rule.kind in (ASSIGN, SGD):
        scale, keep = rule.linear
        _accumulate(u, v, w, start, stop, first, rule.kind == SGD, scale * alpha, keep, threads)
        return
    kernel, kind, arrays = compiled("_updates").update, rule.kind, 1 + rule.states
    if threads == 1:
        end = _ALL if stop is None else stop
        try:
            numbers, scratch = rule.numbers(w.dtype), local.memory[w.itemsize]
            s = states[0] if arrays > 1 else w
            t = states[1] if arrays > 2 else w
            if kernel(kind, numbers, u, v, w, s, t, arrays, first, start, end, alpha, scratch) == DONE:
                return
        except _REFUSED:
            check_factors(u, v, w, start, stop, first)
            check_arrays(w, *states_of(rule, w, states))
            raise
    stop = check_factors(u, v, w, start, stop, first)
    s, t = states_of(rule, w, states)
    before = kind, rule.numbers(w.dtype), u, v, w, s, t, arrays, first
    share(partial(_complete, kernel, w, before, (alpha,)), start, stop, len(u) * w.shape[1], threads)


def update_dense(
    rule: Rule,
    g: np.ndarray,
    w: np.ndarray,
    states: Sequence[np.ndarray | None] = (),
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    *,
    alpha: float = 1.0,
    threads: int = 1,
) -> None:
    """Let a rule take the gradient α·g.

    Args:
        rule: `assign`, `sgd`, `adam`, `adagrad` or `proximal`.
        g: K×D like w, or some of these rows, from ``first`` on.
        w: K×D, C-contiguous and writeable float32 or float64.
        states: The K×D arrays like w that the rule keeps.
        start: First row.
        stop: End of the rows; all by default.
        first: The row of w that row 0 of g belongs to.
        alpha: Factor of the gradient.
        threads: The most threads that share the rows.

    Raises:
        ValueError: Shapes or states that do not fit, or rows out of range.

    >>> import numpy as np
    >>> from sfb.kernels import sgd, update_dense
    >>> w = np.zeros((1, 2))
    >>> update_dense(sgd(0.5), np.array([[1.0, 2.0]]), w)
    >>> w
    array([[-0.5, -1. ]])
    """
    if g.shape[1] != w.shape[1]:
        raise ValueError(f"the gradient must have the {w.shape[1]} columns of the parameter, got {g.shape}")
    stop = check_rows(w, start, stop, first, g.shape[0])
    s, t = states_of(rule, w, states)
    kernel, numbers = compiled("_updates").update_dense, rule.numbers(w.dtype)
    if threads == 1:
        kernel(rule.kind, numbers, g, w, s, t, first, start, stop, alpha)
        return

    def work(low: int, high: int) -> None:
        kernel(rule.kind, numbers, g, w, s, t, first, low, high, alpha)

    share(work, start, stop, 8 * w.shape[1], threads)


def shrink_rows(w: np.ndarray, threshold: float, start: int = 0, stop: int | None = None, *, threads: int = 1) -> None:
    """Scale each row r of w by max(0, 1 − threshold/‖r‖), the proximal step of the group lasso.

    Parikh and Boyd, "Proximal Algorithms", 2014, section 6.5.4.

    Args:
        w: K×D, C-contiguous and writeable float32 or float64.
        threshold: ≥ 0; rows no longer than that become 0.
        start: First row.
        stop: End of the rows; all by default.
        threads: The most threads that share the rows.

    Raises:
        ValueError: Rows out of range, or a negative threshold.

    >>> import numpy as np
    >>> from sfb.kernels import shrink_rows
    >>> w = np.array([[3.0, 4.0], [0.0, 1.0]])
    >>> shrink_rows(w, 2.5)
    >>> w
    array([[1.5, 2. ],
           [0. , 0. ]])
    """
    stop = check_rows(w, start, stop, 0, w.shape[0])
    if not threshold >= 0:
        raise ValueError(f"threshold must be ≥ 0, got {threshold!r}")
    kernel = compiled("_updates").shrink_rows
    share(lambda low, high: kernel(w, low, high, threshold), start, stop, 8 * w.shape[1], threads)


def project_rows(w: np.ndarray, radius: float, start: int = 0, stop: int | None = None, *, threads: int = 1) -> None:
    """Scale each row r of w by min(1, radius/‖r‖): project the rows onto a ball; a row that holds NaN stays as it is.

    Args:
        w: K×D, C-contiguous and writeable float32 or float64.
        radius: > 0.
        start: First row.
        stop: End of the rows; all by default.
        threads: The most threads that share the rows.

    Raises:
        ValueError: Rows out of range, or a radius that is not above 0.

    >>> import numpy as np
    >>> from sfb.kernels import project_rows
    >>> w = np.array([[3.0, 4.0], [0.0, 1.0]])
    >>> project_rows(w, 1.0)
    >>> w
    array([[0.6, 0.8],
           [0. , 1. ]])
    """
    stop = check_rows(w, start, stop, 0, w.shape[0])
    if not radius > 0:
        raise ValueError(f"radius must be > 0, got {radius!r}")
    kernel = compiled("_updates").project_rows
    share(lambda low, high: kernel(w, low, high, radius), start, stop, 8 * w.shape[1], threads)


def norm(u: np.ndarray, v: np.ndarray, *, threads: int = 1) -> float:
    """Return the Frobenius norm of uᵀv from the Gram matrices uuᵀ and vvᵀ; the same on every machine.

    ‖uᵀv‖² = Σ (uuᵀ ∘ vvᵀ): m²(K+D) multiplications, and uᵀv is not formed. Rows of u and v whose squares overflow or
    underflow are scaled. The norm is NaN or infinite if u or v holds NaN or Inf.

    Args:
        u: m×K, C-contiguous float32 or float64.
        v: m×D, C-contiguous, of the same type.
        threads: The most threads that share the work.

    >>> import numpy as np
    >>> from sfb.kernels import norm
    >>> norm(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]]))
    5.0
    """
    product = compiled("_reductions").inner_product
    grams = _grams(u, v, threads)
    if all(squares_fit(factor, np.diagonal(gram)) for factor, gram in zip((u, v), grams, strict=True)):
        return norm_from(product(*grams))
    u, v, weights, exponent = balanced(u, v)
    left, right = (gram.astype(np.float64) for gram in _grams(u, v, threads))
    with np.errstate(invalid="ignore"):
        left *= weights[:, None] * weights
    return norm_from(product(left, right), exponent)


def norm_dense(g: np.ndarray) -> float:
    """Return the Frobenius norm of an array, summed in float64; the same on every machine.

    Args:
        g: C-contiguous float32 or float64.

    >>> import numpy as np
    >>> from sfb.kernels import norm_dense
    >>> norm_dense(np.array([[3.0, 4.0]]))
    5.0
    """
    product = compiled("_reductions").inner_product
    square = product(g, g)
    if _LEAST <= square <= 1 / _LEAST:
        return norm_from(square)
    peak = float(np.abs(g).max(initial=0))
    if peak == 0 or not np.isfinite(peak):
        return peak
    exponent = int(np.frexp(peak)[1])
    g = np.ldexp(g, -exponent)
    return norm_from(product(g, g), exponent)


def _grams(u: np.ndarray, v: np.ndarray, threads: int) -> np.ndarray:
    """Return the Gram matrices of the rows of u and of those of v."""
    grams = np.empty((2, len(u), len(u)), u.dtype)
    for factor, gram in zip((u, v), grams, strict=True):
        turned = np.ascontiguousarray(factor.T)
        rebuild(turned, turned.copy(), gram, threads=threads)
    return grams


def reduce(parts: np.ndarray, start: int, stop: int) -> None:
    """Add elements ``start`` to ``stop`` of all rows of ``parts`` to those of its first row, in the order of rows.

    Args:
        parts: R×n, C-contiguous float32 or float64.
        start: First element.
        stop: End of the elements.

    Raises:
        ValueError: Elements out of range.

    >>> import numpy as np
    >>> from sfb.kernels import reduce
    >>> parts = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    >>> reduce(parts, 0, 2)
    >>> parts[0]
    array([11., 22.,  3.])
    """
    if parts.ndim != 2 or not 0 <= start <= stop <= parts.shape[1]:
        raise ValueError(f"elements {start} to {stop} do not lie within the rows of {parts.shape}")
    compiled("_reductions").reduce(parts, start, stop)


def _accumulate(
    u: np.ndarray,
    v: np.ndarray,
    w: np.ndarray,
    start: int,
    stop: int | None,
    first: int,
    add: bool,
    alpha: float,
    beta: float,
    threads: int,
) -> None:
    kernel = compiled("_products").accumulate
    if threads == 1:
        end = _ALL if stop is None else stop
        try:
            if kernel(u, v, w, first, start, end, add, alpha, beta, local.memory[w.itemsize]) == DONE:
                return
        except _REFUSED:
            check_factors(u, v, w, start, stop, first)
            raise
    stop = check_factors(u, v, w, start, stop, first)
    after = add, alpha, beta
    share(partial(_complete, kernel, w, (u, v, w, first), after), start, stop, len(u) * w.shape[1], threads)


def _complete(
    kernel: Callable[..., int], w: np.ndarray, before: tuple[Any, ...], after: tuple[Any, ...], start: int, stop: int
) -> None:
    """Call a kernel for some rows, with arguments that fit and as much scratch as it asks for."""
    missing = kernel(*before, start, stop, *after, local.memory[w.itemsize])
    if missing > 0:
        missing = kernel(*before, start, stop, *after, scratch(missing, w.dtype))
    if missing != DONE:
        raise RuntimeError("a kernel refused arguments that were found to fit")
