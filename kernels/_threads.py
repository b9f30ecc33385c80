"""Rows shared among threads of Python, which leave the interpreter's lock inside a kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["partition", "share"]

# Work, in multiplications, that a thread must find to be worth waking.
_WORTH = 1 << 21


def partition(rows: int, parts: int, index: int) -> tuple[int, int]:
    """Return the rows that part ``index`` of ``parts`` owns: as many as the others, or one less.

    Args:
        rows: The number of rows.
        parts: The number of parts.
        index: The part.

    >>> from sfb.kernels import partition
    >>> [partition(10, 3, index) for index in range(3)]
    [(0, 3), (3, 6), (6, 10)]
    """
    return rows * index // parts, rows * (index + 1) // parts


def share(work: Callable[[int, int], None], start: int, stop: int, row_work: int, threads: int) -> None:
    """Let up to ``threads`` threads, this one among them, do the work of rows ``start`` to ``stop``.

    Args:
        work: Works the rows between two.
        start: First row.
        stop: End of the rows.
        row_work: Multiplications of a row.
        threads: The most threads.
    """
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


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sfb kernel")
