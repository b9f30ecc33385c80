"""Dense: MPI's own Allreduce of the local product."""

from __future__ import annotations

from math import log2
from time import perf_counter

import numpy as np
from mpi4py import MPI

from sfb.collectives.problem import Problem, Timing, rows, settle
from sfb.factors import Factors
from sfb.profile import Cost
from sfb.receiver import Assign, Receiver
from sfb.team import Team

__all__ = ["cost", "prepare", "run", "wire_bytes"]


def cost(problem: Problem) -> Cost:
    """Price 2KD(P−1)/P elements on the wire and 2SKD flop (Thakur et al., IJHPCA 2005, section 4.4)."""
    ring = 2 * problem.dense_bytes * (problem.ranks - 1) / problem.ranks
    far = 2 * problem.dense_bytes * (problem.nodes - 1) / problem.nodes
    deepest = int(problem.counts.max(initial=0))
    # Written by the product, summed, then read by the receiver, of which a rank works its rows.
    passes = 2 + (problem.passes + 1) * problem.share
    return Cost(
        hops=2 * log2(problem.ranks),
        far_hops=2 * log2(problem.nodes),
        nbytes=ring if problem.ranks_per_node > 1 else 0,
        far_nbytes=far,
        flops=problem.flops(deepest),
        touched=passes * problem.dense_bytes + problem.packed_bytes(deepest),
    )


def wire_bytes(problem: Problem, team: Team) -> int:
    """Return the bytes of a ring: each rank receives 2KD(P−1)/P elements."""
    return 2 * problem.dense_bytes * (problem.ranks - 1) // problem.ranks


def prepare(problem: Problem, team: Team) -> None:
    """Allocate the local product."""
    team.buffer("product", problem.shape, problem.dtype)


def run(problem: Problem, team: Team, factors: Factors, receiver: Receiver) -> Timing:
    """Form the local product, reduce it, give it to the receiver."""
    began = perf_counter()
    if isinstance(receiver, Assign) and not problem.shared:
        product = receiver.array
    else:
        product = team.buffer("product", problem.shape, problem.dtype)
    with team.blas_limit():
        np.matmul(factors.u.T, factors.v, out=product)
    formed = perf_counter()
    team.world.Allreduce(MPI.IN_PLACE, product, MPI.SUM)
    reduced = perf_counter()
    receiver.update_dense(product, *rows(problem, team))
    updated = perf_counter()
    settle(problem, team)
    waited = perf_counter() - updated
    return Timing(reduced - formed + waited, formed - began + updated - reduced)
