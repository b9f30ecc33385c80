"""Numba kernels that turn sufficient factors into matrices and updates; no MPI.

Every kernel works rows ``start`` to ``stop`` of a K×D array and takes them in the panels of one
grid that depends on K, D, the element size and the depth alone. Ranks that own whole panels
therefore produce the same bits however many of them share the work.

Numba is imported, and the kernels are compiled or loaded from its cache, on the first call.
"""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np

__all__ = ["panel_height", "partition", "rebuild", "reduce", "sgd", "sgd_dense", "warmup"]

# Up to this depth, rows stream through the cache; above it, panels go through BLAS.
STREAM_DEPTH = 2
# From this depth, BLAS needs taller panels to amortise its packing of v.
DEEP = 64
# Bound of the scratch panel.
PANEL_BYTES = 4 << 20


def panel_height(shape: tuple[int, int], itemsize: int, depth: int) -> int:
    """Return the rows of one panel of the grid; 1 where rows are streamed."""
    rows, columns = shape
    if depth <= STREAM_DEPTH:
        return 1
    height = 256 if depth >= DEEP else 128
    height = min(height, rows // 16, PANEL_BYTES // max(1, columns * itemsize))
    return max(16, height // 16 * 16)


def partition(rows: int, height: int, parts: int, index: int) -> tuple[int, int]:
    """Return the rows, whole panels, that part ``index`` of ``parts`` owns."""
    panels = -(-rows // height)
    return min(rows, panels * index // parts * height), min(rows, panels * (index + 1) // parts * height)


@functools.cache
def _compiled() -> ModuleType:
    from sfb.kernels import _loops

    return _loops


def warmup() -> None:
    """Compile every kernel, or load it from Numba's cache."""
    import scipy.linalg.cython_blas  # noqa: F401 - where a kernel's np.dot finds BLAS when it first runs

    _compiled()


def rebuild(
    u: np.ndarray, v: np.ndarray, g: np.ndarray, start: int = 0, stop: int | None = None, first: int = 0
) -> None:
    """Set rows of g to those of uᵀv.

    Args:
        u: m×K, C-contiguous float32 or float64; m may be 0. Or fewer columns of it, from ``first`` on.
        v: m×D, likewise.
        g: K×D, C-contiguous and writeable; shares no memory with u or v.
        start: First row, a multiple of the panel height.
        stop: End of the rows; all that u has by default.
        first: The row of g that column 0 of u belongs to, a multiple of the panel height.

    Raises:
        ValueError: Shapes that do not fit, or rows out of range.
        TypeError: Dtypes, orders or read-only arrays that the kernels do not take.
    """
    stop = _check(u, v, g, start, stop, first)
    if g.shape[1]:
        height = panel_height(g.shape, g.itemsize, len(u))
        _compiled().rebuild(u, v, g[first:] if first else g, start - first, stop - first, height)


def reduce(parts: np.ndarray, start: int, stop: int) -> None:
    """Add elements ``start`` to ``stop`` of all rows of ``parts`` to those of its first row, in the order of rows.

    Args:
        parts: R×n, C-contiguous float32 or float64.
        start: First element.
        stop: End of the elements.

    Raises:
        ValueError: Elements out of range.
    """
    if parts.ndim != 2 or not 0 <= start <= stop <= parts.shape[1]:
        raise ValueError(f"elements {start} to {stop} do not lie within the rows of {parts.shape}")
    _compiled().reduce(parts, start, stop)


def sgd(
    u: np.ndarray,
    v: np.ndarray,
    w: np.ndarray,
    velocity: np.ndarray | None,
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    lr: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """Apply one step of SGD with the gradient g = uᵀv to rows of w; g is never stored.

    d = g + weight_decay·w; velocity ← momentum·velocity + d; w ← w − lr·velocity, or
    w − lr·(d + momentum·velocity) with Nesterov's momentum, or w − lr·d without momentum.

    Args:
        u: m×K, as in `rebuild`.
        v: m×D, likewise.
        w: K×D, C-contiguous and writeable.
        velocity: K×D like w; None without momentum.
        start: First row, a multiple of the panel height.
        stop: End of the rows; all by default.
        first: As in `rebuild`.
        lr: Learning rate.
        momentum: Factor of the velocity.
        weight_decay: Factor of w added to the gradient.
        nesterov: Look ahead along the velocity.
    """
    stop = _check(u, v, w, start, stop, first)
    if w.shape[1]:
        height = panel_height(w.shape, w.itemsize, len(u))
        state = _velocity(velocity, w, momentum)
        if first:
            w, state = w[first:], state[first:]
        _compiled().sgd(u, v, w, state, start - first, stop - first, height, lr, momentum, weight_decay, nesterov)


def sgd_dense(
    g: np.ndarray,
    w: np.ndarray,
    velocity: np.ndarray | None,
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    lr: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """Apply the step of `sgd` with a gradient g that exists already: K×D like w, or rows of it from ``first`` on."""
    if g.shape[1] != w.shape[1]:
        raise ValueError(f"the gradient must have the {w.shape[1]} columns of the parameter, got {g.shape}")
    stop = _check_rows(w, start, stop, first, g.shape[0])
    if w.shape[1]:
        state = _velocity(velocity, w, momentum)
        if first:
            w, state = w[first:], state[first:]
        _compiled().sgd_dense(w, state, g, start - first, stop - first, lr, momentum, weight_decay, nesterov)


def _check(u: np.ndarray, v: np.ndarray, out: np.ndarray, start: int, stop: int | None, first: int) -> int:
    if u.shape[0] != v.shape[0] or out.shape[1] != v.shape[1]:
        raise ValueError(f"expected u m×K, v m×D and K×D, got {u.shape}, {v.shape} and {out.shape}")
    return _check_rows(out, start, stop, first, u.shape[1])


def _check_rows(out: np.ndarray, start: int, stop: int | None, first: int, given: int) -> int:
    """Return ``stop``, after checking the rows against those of ``out`` and those given, ``first`` on."""
    if first < 0 or first + given > out.shape[0] or (first == 0 and stop is None and given != out.shape[0]):
        raise ValueError(f"rows {first} to {first + given} do not fit the {out.shape[0]} rows of the array")
    stop = first + given if stop is None else stop
    if not first <= start <= stop <= first + given:
        raise ValueError(f"rows {start} to {stop} do not lie within rows {first} to {first + given}")
    return stop


def _velocity(velocity: np.ndarray | None, w: np.ndarray, momentum: float) -> np.ndarray:
    if momentum == 0:
        return w  # never read
    if velocity is None or velocity.shape != w.shape or velocity.dtype != w.dtype:
        raise ValueError(f"momentum needs a velocity of shape {w.shape} and dtype {w.dtype}")
    return velocity
