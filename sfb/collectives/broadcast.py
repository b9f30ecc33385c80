"""Broadcast: every rank gathers all factors and rebuilds the sum from them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.collectives.update import Gathering, block_counts, blocks, factor_costs, posted, rebuild_cost, update
from sfb.factors import Factors
from sfb.receiver import Receiver
from sfb.tuning.profile import Use

if TYPE_CHECKING:
    from sfb.runtime.team import Team

__all__ = ["calls", "cost", "payload", "prepare", "run", "suits", "wire_bytes"]


def suits(problem: Problem) -> bool:
    """Return whether "auto" may take this algorithm: always."""
    return True


def cost(problem: Problem) -> list[Use]:
    """Price (P−1)S(K+D) elements received and 2PSKD flop rebuilt (Xie et al., UAI 2016, section 3)."""
    samples = problem.depth / problem.ranks
    if problem.ranks == 1:
        gathers = []
    elif payload(problem) is not None:
        gathers = problem.eager_cost(samples * problem.sample_bytes)
    elif problem.packed:
        gathers = [Use("allgather", samples * sum(problem.shape) * problem.sent_itemsize)]
    else:
        gathers = factor_costs(problem, "allgather")
    return [*gathers, Use("sync", times=problem.shared), *rebuild_cost(problem)]


def calls(problem: Problem) -> int:
    """Return the number of blocks, each of which takes as long as an exchange of next to nothing."""
    return prod(block_counts(problem))


def wire_bytes(problem: Problem, rank: int = 0) -> int:
    """Return the bytes of the other ranks' factors."""
    # Each block of rows gathers v anew if the samples come in parts.
    times = len(problem.row_blocks) if problem.sample_blocks > 1 else 1
    samples = problem.depth - int(problem.counts[rank])
    return samples * (problem.shape[0] + times * problem.shape[1]) * problem.sent_itemsize


def prepare(problem: Problem, team: Team) -> None:
    """Allocate room for the factors of all ranks."""
    if problem.ranks > 1 and problem.fits:
        team.pool.reserve(*(problem.depth * n * problem.itemsize for n in problem.shape))


def payload(problem: Problem) -> tuple[int, int] | None:
    """Return the payload of an eager exchange, factors, and its bytes; None for unlike S or beyond the eager limit."""
    from sfb.kernels.eager import FACTORS

    nbytes = problem.deepest * problem.sample_bytes
    return (FACTORS, nbytes) if problem.uniform and problem.eager(nbytes) else None


def run(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Gather u and v in the order of ranks, and update with one deep product."""
    rank, world = call.team.rank, call.team.world
    kept: np.ndarray | None = None

    def gather(columns: slice, first: np.ndarray, last: np.ndarray, final: bool) -> Gathering:
        nonlocal kept
        mine = slice(int(first[rank]), int(last[rank]))
        counts = last - first
        depth = int(counts.sum())
        offsets = np.concatenate(([0], np.cumsum(counts)[:-1]))
        own = np.ascontiguousarray(factors.u[mine, columns])
        u = call.buffer((depth, own.shape[1]), problem.dtype, "u")
        requests = call.allgather(world, own, u, counts, offsets)
        if kept is None or problem.sample_blocks > 1:
            kept = call.buffer((depth, problem.shape[1]), problem.dtype, "v")
            requests += call.allgather(world, factors.v[mine], kept, counts, offsets)
        yield from posted(requests, final)
        return u, kept

    if problem.ranks == 1:
        update(problem, call, receiver, factors.u, factors.v, 0, problem.shape[0])
    elif problem.packed:
        u, v = yield from _gather_packed(problem, call, factors)
        update(problem, call, receiver, u, v, 0, problem.shape[0])
    elif problem.fits:
        u, v = yield from _gather(problem, call, factors)
        update(problem, call, receiver, u, v, 0, problem.shape[0])
    else:
        yield from blocks(problem, call, receiver, gather)
    if problem.shared:
        yield from call.meet(last=True)


def _gather(problem: Problem, call: Call, factors: Factors) -> Gathering:
    """Gather u and v in a collective each."""
    requests, gathered = [], []
    for mine in (factors.u, factors.v):
        gathered.append(call.buffer((problem.depth, mine.shape[1]), problem.dtype))
        requests += call.allgather(call.team.world, mine, gathered[-1], *problem.spans)
    yield from posted(requests, True)
    u, v = gathered
    return u, v


def _gather_packed(problem: Problem, call: Call, factors: Factors) -> Gathering:
    """Gather u and v as one message from each rank."""
    ranks, (rows, columns) = problem.ranks, problem.shape
    messages = call.buffer((ranks, factors.u.size + factors.v.size), problem.dtype)
    yield from posted(call.allgather_packed(call.team.world, factors, messages), True)
    u = np.ascontiguousarray(messages[:, : factors.u.size]).reshape(problem.depth, rows)
    v = np.ascontiguousarray(messages[:, factors.u.size :]).reshape(problem.depth, columns)
    return u, v
