"""Sharded: each rank rebuilds a part of the sum from the factors of all ranks, and gathers the other parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.call import Call, counts_by_node
from sfb.collectives.problem import Problem
from sfb.collectives.update import own_rows, posted
from sfb.factors import Factors
from sfb.receiver import Assign, Receiver
from sfb.runtime import limits
from sfb.tuning.profile import Use

if TYPE_CHECKING:
    from sfb.runtime.team import Team

__all__ = ["cost", "prepare", "run", "suits", "wire_bytes"]


def suits(problem: Problem) -> bool:
    """Return whether "auto" may take this algorithm: on a single node, `node` does the same without the exchange."""
    nbytes = problem.depth * problem.sample_bytes + problem.dense_bytes
    return not problem.whole and problem.place.nodes > 1 and nbytes <= problem.max_bytes and _countable(problem)


def _countable(problem: Problem) -> bool:
    """Return whether MPI can count the elements that a rank sends and receives."""
    longer = max(problem.shape)
    return max(problem.deepest * longer, problem.depth * (longer // problem.ranks + 1)) <= limits.MAX_COUNT


def cost(problem: Problem) -> list[Use]:
    """Price the smaller factor gathered, the larger exchanged in parts, 2SKD flop, and KD(P−1)/P elements gathered."""
    samples = problem.depth / problem.ranks
    small, large = sorted(problem.shape)
    part = 1 / problem.ranks
    passes = (problem.passes + 1) * problem.share if not problem.assigns else problem.by_columns * 2
    gathered = "across" if problem.shared else "allgather"
    return [
        Use("allgather", samples * small * problem.itemsize),
        Use("alltoall", samples * large * problem.itemsize),
        *problem.product_cost(problem.depth, *((1.0, part) if problem.by_columns else (part, 1.0))),
        Use(gathered, problem.dense_bytes * part),
        Use("sync", times=2 * problem.shared),
        Use("pass", passes * problem.dense_bytes),
    ]


def wire_bytes(problem: Problem, rank: int = 0) -> int:
    """Return the bytes of the smaller factor of all ranks, this rank's part of the larger, and the others' parts."""
    small, large = sorted(problem.shape)
    samples = problem.depth - int(problem.counts[rank])
    others = (problem.ranks - 1) / problem.ranks
    return int(samples * (small + large / problem.ranks) * problem.itemsize + others * problem.dense_bytes)


def prepare(problem: Problem, team: Team) -> None:
    """Allocate room for the factors and the parts."""
    if not _countable(problem):
        raise ValueError("sharded takes factors of at most 2³¹ elements a rank; name another algorithm")
    if problem.shared:
        team.across()
        team.staging.grow(problem.dense_bytes)


def run(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Gather one factor whole and a part of the other, rebuild that part of the sum, and gather the other parts."""
    if problem.by_columns:
        whole, split = factors.u, factors.v
    else:
        whole, split = factors.v, factors.u
    team, rank = call.team, call.team.rank
    ranges = _ranges(problem)
    widths = np.array([stop - start for start, stop in ranges])
    gathered = call.buffer((problem.depth, whole.shape[1]), problem.dtype)
    requests = call.allgather(team.world, whole, gathered, *problem.spans)
    outgoing = call.buffer((split.size,), problem.dtype)
    at = 0
    for start, stop in ranges:
        outgoing[at : at + len(split) * (stop - start)].reshape(len(split), stop - start)[...] = split[:, start:stop]
        at += len(split) * (stop - start)
    part = call.buffer((problem.depth, int(widths[rank])), problem.dtype)
    requests += call.alltoall(
        team.world, outgoing, len(split) * widths, part.reshape(-1), problem.counts * int(widths[rank])
    )
    yield from requests
    yield from (_by_columns if problem.by_columns else _by_rows)(problem, call, receiver, gathered, part, ranges)


def _by_rows(
    problem: Problem, call: Call, receiver: Receiver, v: np.ndarray, u: np.ndarray, ranges: list[tuple[int, int]]
) -> Iterator[Any]:
    """Rebuild rows in place in the sum, and gather the rows of the other ranks around them."""
    team = call.team
    start, stop = ranges[team.rank]
    assigned = isinstance(receiver, Assign)
    if assigned:
        total = receiver.array
    elif problem.shared:
        block, steps = call.staging(problem.dense_bytes)
        yield from steps
        total = block.array(problem.shape, problem.dtype)
    else:
        total = call.buffer(problem.shape, problem.dtype)
    with call:
        kernels.rebuild(u, v, total, start, stop, start, threads=team.threads)
    rows = np.array([high - low for low, high in ranges])
    firsts = np.array([low for low, _ in ranges])
    yield from posted(_gather(problem, call, total, rows, firsts), True)
    yield from _apply(problem, call, receiver, total, assigned)


def _by_columns(
    problem: Problem, call: Call, receiver: Receiver, u: np.ndarray, v: np.ndarray, ranges: list[tuple[int, int]]
) -> Iterator[Any]:
    """Rebuild columns as a block, gather the blocks, and put them beside each other in the sum."""
    team = call.team
    rows = problem.shape[0]
    if problem.shared:
        block, steps = call.staging(problem.dense_bytes)
        yield from steps
        blocks = block.array((problem.shape[0] * problem.shape[1], 1), problem.dtype)
    else:
        blocks = call.buffer((problem.shape[0] * problem.shape[1], 1), problem.dtype)
    sizes = np.array([rows * (high - low) for low, high in ranges])
    firsts = np.array([rows * low for low, _ in ranges])
    start, stop = ranges[team.rank]
    mine = blocks[rows * start : rows * stop].reshape(rows, stop - start)
    with call:
        kernels.rebuild(u, v, mine, threads=team.threads)
    yield from posted(_gather(problem, call, blocks, sizes, firsts), True)
    if problem.shared:
        yield from call.meet()
    low, high = own_rows(problem, call.team, 0, rows)
    assigned = isinstance(receiver, Assign)
    total = receiver.array if assigned else call.buffer((high - low, problem.shape[1]), problem.dtype)
    part = total[low:high] if assigned else total
    with call:
        for left, right in ranges:
            part[:, left:right] = blocks[rows * left : rows * right].reshape(rows, right - left)[low:high]
        if not assigned:
            receiver.update_dense(total, low, high, low, threads=team.threads)
    if problem.shared:
        yield from call.meet(last=True)


def _gather(problem: Problem, call: Call, parts: np.ndarray, counts: np.ndarray, firsts: np.ndarray) -> list[Any]:
    """Bring the rows of ``parts`` of every rank to every rank, or to every node if its ranks share them."""
    team = call.team
    if not problem.shared:
        return call.gather(team.world, team.in_place, parts, counts, firsts)
    requests = []
    for slot, comm in team.across():
        its_counts, its_firsts = counts_by_node(counts, team, slot), counts_by_node(firsts, team, slot)
        requests += call.gather(comm, team.in_place, parts, its_counts, its_firsts)
    return requests


def _apply(problem: Problem, call: Call, receiver: Receiver, total: np.ndarray, assigned: bool) -> Iterator[Any]:
    if problem.shared:
        yield from call.meet()
    if not assigned:
        with call:
            receiver.update_dense(
                total, *own_rows(problem, call.team, 0, problem.shape[0]), 0, threads=call.team.threads
            )
    if problem.shared:
        yield from call.meet(last=True)


def _ranges(problem: Problem) -> list[tuple[int, int]]:
    """Return the part of each rank: a range of rows, or of columns."""
    side = problem.shape[1 if problem.by_columns else 0]
    return [kernels.partition(side, problem.ranks, rank) for rank in range(problem.ranks)]
