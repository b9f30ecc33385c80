"""What every algorithm does with the factors once it has them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.receiver import Receiver
from sfb.runtime.steps import POSTED

if TYPE_CHECKING:
    from sfb.runtime.team import Team

__all__ = ["Gathering", "blocks", "own_rows", "posted", "update"]

Gathering = Generator[Any, None, tuple[np.ndarray, np.ndarray]]
Gather = Callable[[slice, np.ndarray, np.ndarray, bool], Gathering]


def own_rows(problem: Problem, team: Team, low: int, high: int) -> tuple[int, int]:
    """Return the rows from ``low`` to ``high`` that this rank works: all, or its share of the node's copy."""
    if not problem.shared:
        return low, high
    rows = problem.memo.get((low, high))
    if rows is None:
        board = team.board
        start, stop = kernels.partition(high - low, board.ranks, board.me)
        rows = problem.memo[low, high] = low + start, low + stop
    return rows


def update(problem: Problem, call: Call, receiver: Receiver, u: np.ndarray, v: np.ndarray, low: int, high: int) -> None:
    """Let the receiver take uᵀv, rows ``low`` to ``high`` of its sum, in those that this rank works."""
    start, stop = own_rows(problem, call.team, low, high)
    with call:
        receiver.update(u, v, start, stop, low, threads=call.team.threads)


def blocks(problem: Problem, call: Call, receiver: Receiver, gather: Gather) -> Iterator[Any]:
    """Gather and apply the factors, in blocks of rows and of samples where they are beyond the ceiling.

    Args:
        problem: The exchange.
        call: Under way.
        receiver: To be updated.
        gather: From the columns of u, and the first and the last sample of each rank, to the factors of all
            ranks, as what is to be waited for and then returned; last, whether it posts no more collectives.
    """
    parts, edges = problem.sample_blocks, problem.sample_edges
    last = len(problem.row_blocks) - 1
    for i, (low, high) in enumerate(problem.row_blocks):
        if parts == 1:
            u, v = yield from gather(slice(low, high), edges[0], edges[1], i == last)
            update(problem, call, receiver, u, v, low, high)
            continue
        start, stop = own_rows(problem, call.team, low, high)
        total = call.buffer((stop - start, problem.shape[1]), problem.dtype, "total")
        for part in range(parts):
            final = i == last and part == parts - 1
            u, v = yield from gather(slice(low, high), edges[part], edges[part + 1], final)
            with call:
                mine = np.ascontiguousarray(u[:, start - low : stop - low])
                form = kernels.accumulate if part else kernels.rebuild
                form(mine, v, total, threads=call.team.threads)
        with call:
            receiver.update_dense(total, start, stop, start, threads=call.team.threads)


def posted(requests: list[Any], last: bool) -> Iterator[Any]:
    """Say so if these are the last collectives, and wait for them."""
    if last:
        yield POSTED
    yield from requests
