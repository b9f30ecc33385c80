"""Numba kernels that turn sufficient factors into matrices and updates; no MPI.

Every element of uᵀv is a chain of fused multiply-adds over the samples in their order, put aside and taken up again
every `DEPTH` samples. So its bits do not depend on which rows a call works, on how many threads share them, or on the
processor's vectors: ranks may divide the rows as they like.

Numba is imported, and the kernels are compiled or loaded from its cache, on the first call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from sfb.kernels.rules import ASSIGN, SGD, Rule, adagrad, adam, assign, proximal, sgd
from sfb.kernels.status import DONE

__all__ = [
    "PLAIN",
    "STAGES",
    "Rule",
    "accumulate",
    "adagrad",
    "adam",
    "assign",
    "load",
    "norm",
    "partition",
    "proximal",
    "rebuild",
    "reduce",
    "room_for",
    "scratch",
    "scratch_for",
    "sgd",
    "shrink_rows",
    "update",
    "update_dense",
]

# The modules to compile, in stages: those of one do not need each other, and take about as long from both ends.
STAGES = (("sync",), ("arrays", "_loops", "_half", "rounds"), ("fused", "eager"))
# Those that a communicator needs for plain arrays.
PLAIN = (("sync",), ("arrays", "rounds"))

# Work, in multiplications, that a thread must find to be worth waking.
_WORTH = 1 << 21
_ALIGN = 64
# Stands for the end of the rows.
_ALL = -1
# What comes of arguments that no kernel is compiled for.
_REFUSED = (TypeError, KeyError, AttributeError, IndexError)


def partition(rows: int, parts: int, index: int) -> tuple[int, int]:
    """Return the rows that part ``index`` of ``parts`` owns: as many as the others, or one less."""
    return rows * index // parts, rows * (index + 1) // parts


@functools.cache
def _compiled() -> ModuleType:
    from sfb.kernels import _loops

    return _loops


def load(module: str) -> None:
    """Compile the kernels of a module, or load them from Numba's cache."""
    import_module(f"sfb.kernels.{module}")


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
        u: m×K, C-contiguous float32 or float64; m may be 0. Or fewer columns of it, from ``first`` on.
        v: m×D, likewise.
        g: K×D, C-contiguous and writeable; shares no memory with u or v.
        start: First row.
        stop: End of the rows; all that u has by default.
        first: The row of g that column 0 of u belongs to; negative if g lacks that row and others after it.
        alpha: Factor of the product.
        threads: To share the rows among.

    Raises:
        ValueError: Shapes that do not fit, or rows out of range.
        TypeError: Dtypes, orders or read-only arrays that the kernels do not take.
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
    """Set rows of w to those of β·w + α·uᵀv; arguments and errors as of `rebuild`."""
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
        v: m×D, likewise.
        w: K×D, C-contiguous and writeable.
        states: The K×D arrays like w that the rule keeps.
        start: First row.
        stop: End of the rows; all by default.
        first: As in `rebuild`.
        alpha: Factor of the gradient.
        threads: To share the rows among.

    Raises:
        ValueError: Shapes or states that do not fit, or rows out of range.
        TypeError: As `rebuild` does.
    """
    if rule.kind in (ASSIGN, SGD):
        scale, keep = rule.linear
        _accumulate(u, v, w, start, stop, first, rule.kind == SGD, scale * alpha, keep, threads)
        return
    kernel, kind, arrays = _compiled().update, rule.kind, 1 + rule.states
    if threads == 1:
        end = _ALL if stop is None else stop
        try:
            numbers, scratch = rule.numbers(w.dtype), _local.memory[w.itemsize]
            s = states[0] if arrays > 1 else w
            t = states[1] if arrays > 2 else w
            if kernel(kind, numbers, u, v, w, s, t, arrays, first, start, end, alpha, scratch) == DONE:
                return
        except _REFUSED:
            _check(u, v, w, start, stop, first)
            _check_arrays(w, *states_of(rule, w, states))
            raise
    stop = _check(u, v, w, start, stop, first)
    s, t = states_of(rule, w, states)
    before = kind, rule.numbers(w.dtype), u, v, w, s, t, arrays, first
    _share(partial(_complete, kernel, w, before, (alpha,)), start, stop, len(u) * w.shape[1], threads)


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
    """Let a rule take the gradient α·g, which exists already: K×D like w, or rows of it from ``first`` on."""
    if g.shape[1] != w.shape[1]:
        raise ValueError(f"the gradient must have the {w.shape[1]} columns of the parameter, got {g.shape}")
    stop = _check_rows(w, start, stop, first, g.shape[0])
    s, t = states_of(rule, w, states)
    kernel, numbers = _compiled().update_dense, rule.numbers(w.dtype)
    if threads == 1:
        kernel(rule.kind, numbers, g, w, s, t, first, start, stop, alpha)
        return

    def work(low: int, high: int) -> None:
        kernel(rule.kind, numbers, g, w, s, t, first, low, high, alpha)

    _share(work, start, stop, 8 * w.shape[1], threads)


def shrink_rows(w: np.ndarray, threshold: float, start: int = 0, stop: int | None = None, *, threads: int = 1) -> None:
    """Scale each row r of w by max(0, 1 − threshold/‖r‖), the proximal step of the group lasso.

    Parikh and Boyd, "Proximal Algorithms", 2014, section 6.5.4.

    Args:
        w: K×D, C-contiguous and writeable float32 or float64.
        threshold: ≥ 0; rows no longer than that become 0.
        start: First row.
        stop: End of the rows; all by default.
        threads: To share the rows among.

    Raises:
        ValueError: Rows out of range, or a negative threshold.
    """
    stop = _check_rows(w, start, stop, 0, w.shape[0])
    if not threshold >= 0:
        raise ValueError(f"threshold must be ≥ 0, got {threshold!r}")
    kernel = _compiled().shrink_rows
    _share(lambda low, high: kernel(w, low, high, threshold), start, stop, 8 * w.shape[1], threads)


def norm(u: np.ndarray, v: np.ndarray, *, threads: int = 1) -> float:
    """Return the Frobenius norm of uᵀv from the Gram matrices uuᵀ and vvᵀ; the same on every machine.

    ‖uᵀv‖² = Σ (uuᵀ ∘ vvᵀ): m²(K+D) multiplications, and uᵀv is not formed.

    Args:
        u: m×K, C-contiguous float32 or float64.
        v: m×D, likewise.
        threads: To share the work among.
    """
    depth = len(u)
    grams = np.empty((2, depth, depth), u.dtype)
    for factor, gram in zip((u, v), grams, strict=True):
        turned = np.ascontiguousarray(factor.T)
        rebuild(turned, turned.copy(), gram, threads=threads)
    return float(np.sqrt(max(0.0, _compiled().inner(*grams))))


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
    kernel = _compiled().accumulate
    if threads == 1:
        end = _ALL if stop is None else stop
        try:
            if kernel(u, v, w, first, start, end, add, alpha, beta, _local.memory[w.itemsize]) == DONE:
                return
        except _REFUSED:
            _check(u, v, w, start, stop, first)
            raise
    stop = _check(u, v, w, start, stop, first)
    after = add, alpha, beta
    _share(partial(_complete, kernel, w, (u, v, w, first), after), start, stop, len(u) * w.shape[1], threads)


def _complete(
    kernel: Callable[..., int], w: np.ndarray, before: tuple[Any, ...], after: tuple[Any, ...], start: int, stop: int
) -> None:
    """Call a kernel for some rows, with arguments that fit and as much scratch as it says that it needs."""
    missing = kernel(*before, start, stop, *after, _local.memory[w.itemsize])
    if missing > 0:
        missing = kernel(*before, start, stop, *after, scratch(missing, w.dtype))
    if missing != DONE:
        raise RuntimeError("a kernel refused arguments that were found to fit")


def _check(u: np.ndarray, v: np.ndarray, out: np.ndarray, start: int, stop: int | None, first: int) -> int:
    """Return ``stop``; raise what is wrong with arguments that a kernel does not take."""
    _check_arrays(out, u=u, v=v)
    if np.may_share_memory(u, out) or np.may_share_memory(v, out):
        raise ValueError("u or v shares memory with what is to be changed")
    if u.shape[0] != v.shape[0] or out.shape[1] != v.shape[1]:
        raise ValueError(f"expected u m×K, v m×D and K×D, got {u.shape}, {v.shape} and {out.shape}")
    return _check_rows(out, start, stop, first, u.shape[1])


def _check_arrays(out: np.ndarray, *states: np.ndarray, **inputs: np.ndarray) -> None:
    """Raise TypeError unless the arrays are what the kernels are compiled for."""
    for name, array in {"the result": out, **{f"state {i}": s for i, s in enumerate(states)}, **inputs}.items():
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype not in (np.float32, np.float64):
            what = f"{array.ndim}-dimensional {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{name} must be a matrix of float32 or float64, got {what}")
        if array.dtype != out.dtype or not array.flags.c_contiguous or not array.flags.aligned:
            raise TypeError(f"{name} must be C-contiguous, aligned {out.dtype} like the result, got {array.dtype}")
        if name not in inputs and not array.flags.writeable:
            raise TypeError(f"{name} must be writeable")


def _check_rows(out: np.ndarray, start: int, stop: int | None, first: int, given: int) -> int:
    """Return ``stop``, after checking the rows against those of ``out`` and those given, ``first`` on."""
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
    """Return two arrays to pass for the states: w, which is never touched as such, for those that a rule lacks."""
    both = [w, w]
    for i in range(rule.states):
        state = states[i] if i < len(states) else None
        if state is None or state.shape != w.shape or state.dtype != w.dtype:
            raise ValueError(f"the rule needs {rule.states} states of shape {w.shape} and dtype {w.dtype}")
        both[i] = state
    return both


@functools.lru_cache(1024)
def room_for(depth: int, columns: int, itemsize: int) -> int:
    """Return the elements of scratch for what any kernel does with up to ``depth`` samples: at most some 5 MiB."""
    loops = _compiled()
    samples, deep = min(depth, loops.DEPTH), depth > loops.DEPTH
    width = loops.LINE // itemsize
    # Who asks may accumulate or use a rule, and may have fewer samples in the end.
    across = min(columns, loops.wide(depth) // itemsize)
    packed = (loops.BAND + across + 2 * width) * samples
    if deep:
        return packed + loops.TALL * across
    return packed + loops.ROWS * min(columns + width, loops.WIDE // itemsize)


class _Local(threading.local):
    """Scratch of each thread, by bytes of an element; it grows with what is asked of it."""

    def __init__(self) -> None:
        self.memory = {4: np.empty(0, np.float32), 8: np.empty(0, np.float64)}


_local = _Local()


def scratch(room: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Return this thread's memory, after making room for so many elements."""
    memory = _local.memory[dtype.itemsize]
    if memory.size < room:
        raw = np.empty(room * dtype.itemsize + _ALIGN, np.uint8)
        offset = -raw.ctypes.data % _ALIGN
        memory = _local.memory[dtype.itemsize] = raw[offset : offset + room * dtype.itemsize].view(dtype)
    return memory


def scratch_for(depth: int, w: np.ndarray) -> np.ndarray:
    """Return this thread's memory, with room for what any kernel does with up to ``depth`` samples of w's factors."""
    return scratch(room_for(depth, w.shape[1], w.itemsize), w.dtype)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sfb kernel")


def _share(work: Callable[[int, int], None], start: int, stop: int, row_work: int, threads: int) -> None:
    """Let up to ``threads`` threads do the work of the rows, this one among them."""
    rows = stop - start
    parts = 1 if threads == 1 else max(1, min(threads, rows, rows * row_work // _WORTH))
    if parts == 1:
        work(start, stop)
        return
    ranges = [partition(rows, parts, index) for index in range(parts)]
    others = [_pool(threads - 1).submit(work, start + low, start + high) for low, high in ranges[1:]]
    try:
        work(start, start + ranges[0][1])
    finally:
        for other in others:
            other.result()
