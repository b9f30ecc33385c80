"""Updates of the receiver from gathered factors, at once or in blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.factors import Factors
from sfb.kernels import sparse
from sfb.receiver import Receiver
from sfb.runtime.steps import POSTED
from sfb.tuning.profile import Use

if TYPE_CHECKING:
    from sfb.runtime.team import Team

__all__ = [
    "Gathering",
    "block_counts",
    "blocks",
    "factor_costs",
    "former",
    "own_rows",
    "posted",
    "rebuild_cost",
    "update",
]

Gathering = Generator[Any, None, tuple[np.ndarray, np.ndarray]]
Gather = Callable[[slice, np.ndarray, np.ndarray, bool], Gathering]


def own_rows(problem: Problem, team: Team, low: int, high: int) -> tuple[int, int]:
    """Return the rows between ``low`` and ``high`` that this rank updates: all, or its share of the node's copy."""
    if not problem.shared:
        return low, high
    rows = problem.memo.get((low, high))
    if rows is None:
        board = team.board
        start, stop = kernels.partition(high - low, board.ranks, board.me)
        rows = problem.memo[low, high] = low + start, low + stop
    return rows


def update(problem: Problem, call: Call, receiver: Receiver, u: np.ndarray, v: np.ndarray, low: int, high: int) -> None:
    """Let the receiver take uᵀv, rows ``low`` to ``high`` of its sum, in the rows that this rank updates."""
    start, stop = own_rows(problem, call.team, low, high)
    with call:
        receiver.update(u, v, start, stop, low, threads=call.team.threads)


def former(call: Call, factors: Factors) -> Callable[[np.ndarray, int, int], None]:
    """Return a function that sets an array to rows of the local product, from the second to the third argument."""
    threads = call.team.threads
    if not factors.sparse:
        u, v = factors.u, factors.v
        return lambda out, low, high: kernels.rebuild(u, v, out, 0, high - low, -low, threads=threads)
    memory = call.buffer((sparse.order_bytes(factors.nonzeros, factors.dtype.itemsize),), np.dtype(np.uint8))
    with call:
        product = sparse.order(sparse.parts_of(factors.u, factors.v), memory)
    return lambda out, low, high: sparse.rebuild(product, out, 0, high - low, -low, threads=threads)


def blocks(problem: Problem, call: Call, receiver: Receiver, gather: Gather) -> Iterator[Any]:
    """Gather and apply the factors in blocks of rows and of samples, as all of them exceed the ceiling of memory.

    Args:
        problem: The exchange.
        call: The call.
        receiver: The receiver.
        gather: Gathers a block of all ranks, in steps, and returns its u and v. It takes a range of columns of u, the
            first and the last sample of each rank, and whether this is the last block.
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


def block_counts(problem: Problem) -> tuple[int, int]:
    """Return the numbers of blocks of rows and of samples in which `blocks` gathers factors."""
    return (1, 1) if problem.ranks == 1 else (max(1, len(problem.row_blocks)), problem.sample_blocks)


def factor_costs(problem: Problem, kind: str) -> list[Use]:
    """Return the cost of gathering u and v of all ranks, in blocks, by collectives of a kind."""
    rows, parts = block_counts(problem)
    u, v = (problem.depth / problem.ranks * n * problem.sent_itemsize for n in problem.shape)
    # Each block of rows gathers v anew if the samples come in parts.
    again = rows * parts if parts > 1 else 1
    return [Use(kind, u / (rows * parts), times=rows * parts), Use(kind, v / parts, times=again)]


def rebuild_cost(problem: Problem) -> list[Use]:
    """Return the cost of rebuilding this rank's rows, in blocks, and updating them."""
    rows, parts = block_counts(problem)
    whole = problem.rebuild_cost(problem.depth, problem.share)
    if rows * parts == 1:
        return whole
    product = problem.product_cost(problem.depth / parts, problem.share / rows, times=rows * parts)
    return [*product, whole[-1]]


def posted(requests: list[Any], last: bool) -> Iterator[Any]:
    """Wait for requests, in steps, after yielding `POSTED` if they are the last."""
    if last:
        yield POSTED
    yield from requests
