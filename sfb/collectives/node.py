"""Node: the factors of all ranks lie once in the memory of each node, whose ranks divide the rebuild."""

from __future__ import annotations

from math import log2
from time import perf_counter

import numpy as np
from mpi4py import MPI

from sfb.collectives.problem import Problem, Timing, update
from sfb.factors import Factors
from sfb.profile import Cost
from sfb.receiver import Receiver
from sfb.shared import Block
from sfb.team import Team

__all__ = ["cost", "prepare", "run", "wire_bytes"]

_ALIGN = 64  # v begins on a cache line


def cost(problem: Problem) -> Cost:
    """Price S(K+D) elements written inside the node, each sample once into a node, 2PSKD/R flop."""
    own = problem.depth / problem.ranks * problem.sample_bytes
    outside = problem.depth * problem.sample_bytes * (problem.nodes - 1) / problem.nodes
    return Cost(
        hops=2 * log2(problem.ranks_per_node),
        far_hops=2 * log2(problem.nodes),
        nbytes=own,
        far_nbytes=outside,
        flops=problem.flops(problem.depth) * problem.share,
        touched=problem.passes * problem.dense_bytes * problem.share + problem.packed_bytes(problem.depth),
    )


def wire_bytes(problem: Problem, team: Team) -> int:
    """Return the bytes that this rank reads from its node's other ranks and receives from other nodes."""
    node = team.node_of[team.rank]
    slots = {slot for slot, _ in team.across()} if problem.nodes > 1 else set()
    samples = sum(
        int(count)
        for rank, count in enumerate(problem.counts)
        if rank != team.rank and (team.node_of[rank] == node or team.slot_of[rank] in slots)
    )
    return samples * problem.sample_bytes


def prepare(problem: Problem, team: Team) -> None:
    """Allocate the node's room for everybody's factors."""
    if problem.nodes > 1:
        team.across()
    _staged(problem, team)


def run(problem: Problem, team: Team, factors: Factors, receiver: Receiver) -> Timing:
    """Write into the node's memory, exchange with the same slot of other nodes, update this rank's rows."""
    began = perf_counter()
    block, u, v = _staged(problem, team)
    low = int(problem.offsets[team.rank])
    u[low : low + len(factors)] = factors.u
    v[low : low + len(factors)] = factors.v
    if problem.nodes > 1:
        _exchange(problem, team, u, v)
    team.fence(block)
    staged = perf_counter()
    update(problem, team, receiver, u, v)
    updated = perf_counter()
    # The next exchange may overwrite the staging memory only when every rank of the node has read it.
    team.fence(problem.block)
    waited = perf_counter() - updated
    return Timing(staged - began + waited, updated - staged)


def _exchange(problem: Problem, team: Team, u: np.ndarray, v: np.ndarray) -> None:
    """Bring each slot's samples to every node, straight into the memory that its ranks share."""
    for slot, comm in team.across():
        counts = np.zeros(comm.size, np.int64)
        offsets = np.zeros(comm.size, np.int64)
        for rank, (node, its_slot) in enumerate(zip(team.node_of, team.slot_of, strict=True)):
            if its_slot == slot:
                counts[node], offsets[node] = problem.counts[rank], problem.offsets[rank]
        for gathered in (u, v):
            width = gathered.shape[1]
            comm.Allgatherv(MPI.IN_PLACE, [gathered, (counts * width, offsets * width)])


def _staged(problem: Problem, team: Team) -> tuple[Block, np.ndarray, np.ndarray]:
    rows, columns = problem.shape
    itemsize = problem.dtype.itemsize
    second = -(-problem.depth * rows * itemsize // _ALIGN) * _ALIGN
    block = team.staging(second + problem.depth * columns * itemsize)
    return (
        block,
        block.array((problem.depth, rows), problem.dtype),
        block.array((problem.depth, columns), problem.dtype, second),
    )
