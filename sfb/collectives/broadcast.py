"""Broadcast: every rank gathers all factors and rebuilds the sum from them."""

from __future__ import annotations

from math import log2
from time import perf_counter

import numpy as np

from sfb.collectives.problem import Problem, Timing, settle, update
from sfb.factors import Factors
from sfb.profile import Cost
from sfb.receiver import Receiver
from sfb.team import Team

__all__ = ["cost", "prepare", "run", "wire_bytes"]


def cost(problem: Problem) -> Cost:
    """Price (P−1)S(K+D) elements received and 2PSKD flop rebuilt (Xie et al., UAI 2016, section 3)."""
    gathered = problem.depth * problem.sample_bytes
    inside = gathered * (problem.ranks_per_node - 1) / problem.ranks
    outside = gathered * (problem.ranks - problem.ranks_per_node) / problem.ranks
    return Cost(
        hops=2 * log2(problem.ranks_per_node),
        far_hops=2 * log2(problem.nodes),
        nbytes=inside,
        far_nbytes=outside * problem.ranks_per_node,  # every rank of a node pulls them through its link
        flops=problem.flops(problem.depth) * problem.share,
        touched=problem.passes * problem.dense_bytes * problem.share + problem.packed_bytes(problem.depth),
    )


def wire_bytes(problem: Problem, team: Team) -> int:
    """Return the bytes of the other ranks' factors."""
    return int(problem.depth - problem.counts[team.rank]) * problem.sample_bytes


def prepare(problem: Problem, team: Team) -> None:
    """Allocate room for everybody's factors."""
    if problem.ranks > 1:
        _gathered(problem, team)


def run(problem: Problem, team: Team, factors: Factors, receiver: Receiver) -> Timing:
    """Gather u and v in the order of ranks, and update with one deep product."""
    began = perf_counter()
    if problem.ranks == 1:
        u, v = factors.u, factors.v
    else:
        u, v = _gathered(problem, team)
        for mine, all_ranks in ((factors.u, u), (factors.v, v)):
            if problem.uniform:
                team.world.Allgather(mine, all_ranks)
            else:
                width = mine.shape[1]
                team.world.Allgatherv(mine, [all_ranks, (problem.counts * width, problem.offsets * width)])
    gathered = perf_counter()
    update(problem, team, receiver, u, v)
    updated = perf_counter()
    settle(problem, team)
    waited = perf_counter() - updated
    return Timing(gathered - began + waited, updated - gathered)


def _gathered(problem: Problem, team: Team) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = problem.shape
    return (
        team.buffer("u", (problem.depth, rows), problem.dtype),
        team.buffer("v", (problem.depth, columns), problem.dtype),
    )
