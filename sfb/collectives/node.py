"""Node: the factors of all ranks lie once in the memory of each node, and its ranks divide the rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sfb.collectives.call import Call, counts_by_node
from sfb.collectives.problem import Problem
from sfb.collectives.update import Gathering, block_counts, blocks, factor_costs, own_rows, posted, rebuild_cost, update
from sfb.factors import Factors
from sfb.receiver import Receiver
from sfb.tuning.profile import Use

if TYPE_CHECKING:
    from sfb.runtime.team import Team
    from sfb.runtime.windows import Block

__all__ = ["bind", "calls", "cost", "prepare", "received", "run", "staging_bytes", "suits", "wire_bytes"]

_ALIGN = 64  # v begins on a cache line


def suits(problem: Problem) -> bool:
    """Return whether "auto" may take this algorithm: with one rank per node, `broadcast` does the same for less."""
    return problem.place.ranks_per_node > 1 or problem.ranks == 1


def cost(problem: Problem) -> list[Use]:
    """Price S(K+D) elements written within the node, each sample received once per node, and 2PSKD/R flop."""
    samples = problem.depth / problem.ranks
    across = factor_costs(problem, "across")
    if _packed(problem):
        across = [Use("across", samples * sum(problem.shape) * problem.sent_itemsize)]
    if problem.place.nodes == 1:
        across = []
    count = calls(problem)
    # Each block of rows has v anew.
    copied = samples * (problem.shape[0] / count + problem.shape[1] / problem.sample_blocks) * problem.itemsize
    # Ranks meet before each further block, too, which overwrites the one before.
    meetings = 2 * count - 1 + problem.shared
    return [Use("copy", copied, times=count), *across, Use("sync", times=meetings), *rebuild_cost(problem)]


def calls(problem: Problem) -> int:
    """Return the number of blocks, each of which takes as long as an exchange of next to nothing."""
    return prod(block_counts(problem))


def wire_bytes(problem: Problem, rank: int = 0) -> int:
    """Return the bytes that this rank reads from its node's other ranks and receives from other nodes."""
    near, far = received(problem, rank, problem.counts)
    return sum(problem.shape) * (near * problem.itemsize + far * problem.sent_itemsize)


def received(problem: Problem, rank: int, amounts: np.ndarray) -> tuple[int, int]:
    """Return how much a rank reads from its node's other ranks, and receives from other nodes.

    Args:
        problem: The exchange.
        rank: The rank.
        amounts: What each rank sends.
    """
    node_of = problem.node_of
    home = node_of[rank]
    slots = np.zeros(len(node_of), np.int64)
    sizes: dict[int, int] = {}
    for other, node in enumerate(node_of):
        slots[other] = sizes.get(node, 0)
        sizes[node] = int(slots[other]) + 1
    served = {slot for slot in range(max(sizes.values())) if slot % sizes[home] == slots[rank]}
    near = sum(int(amount) for other, amount in enumerate(amounts) if other != rank and node_of[other] == home)
    far = sum(
        int(amount) for other, amount in enumerate(amounts) if node_of[other] != home and int(slots[other]) in served
    )
    return near, far


def prepare(problem: Problem, team: Team) -> None:
    """Allocate room for the factors of all ranks in the memory of the node."""
    if problem.place.nodes > 1:
        team.across()
    width = max((high - low for low, high in problem.row_blocks), default=0)
    edges = problem.sample_edges
    depth = max(int((last - first).sum()) for first, last in pairwise(edges))
    # A rank without room can tell the others now, but not during the exchange.
    team.staging.grow(_second(depth, width, problem)[1])


def staging_bytes(problem: Problem) -> int:
    """Return the bytes of staging memory for the factors of all ranks."""
    return _second(problem.depth, problem.shape[0], problem)[1]


def bind(problem: Problem, team: Team, block: Block) -> tuple[np.ndarray, None]:
    """Return ``bound`` of the fused kernel (`sfb.kernels.fused`), over the staging memory, and no pieces."""
    from sfb.kernels import fused

    board, (rows, columns) = team.board, problem.shape
    second, _ = _second(problem.depth, rows, problem)
    u = block.array((problem.depth, rows), problem.dtype)
    v = block.array((problem.depth, columns), problem.dtype, second)
    samples, low = int(problem.counts[team.rank]), int(problem.offsets[team.rank])
    start = board.ranks, board.me, board.patience, samples, problem.shared, board.words
    return fused.bind_node(*start, u, v, low, *own_rows(problem, team, 0, rows)), None


def run(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Write into the node's memory, exchange with the same slot of other nodes, update this rank's rows."""
    if problem.ranks == 1:
        update(problem, call, receiver, factors.u, factors.v, 0, problem.shape[0])
    elif problem.fits:
        yield from _at_once(problem, call, factors, receiver)
    else:
        yield from _in_blocks(problem, call, factors, receiver)
    if problem.shared:
        yield from call.meet(last=True)


def _at_once(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    rows = problem.shape[0]
    second, nbytes = _second(problem.depth, rows, problem)
    block, steps = call.staging(nbytes)
    yield from steps
    u, v, low = _gathered(problem, call, block, second)
    u[low : low + len(factors)] = factors.u
    v[low : low + len(factors)] = factors.v
    if _packed(problem):
        yield from _across_packed(problem, call, factors, u, v)
    elif problem.place.nodes > 1:
        # Messages come in the order of nodes, which is that of ranks only with one rank per node.
        spans = problem.spans if problem.place.ranks_per_node == 1 else (problem.counts, problem.offsets)
        yield from posted(_across(call, u, v, *spans), True)
    yield from call.meet()
    update(problem, call, receiver, u, v, 0, rows)


def _in_blocks(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    team = call.team
    first_block = True

    def gather(columns: slice, first: np.ndarray, last: np.ndarray, final: bool) -> Gathering:
        nonlocal first_block
        counts = last - first
        depth = int(counts.sum())
        offsets = np.concatenate(([0], np.cumsum(counts)[:-1]))
        width = columns.stop - columns.start
        second, nbytes = _second(depth, width, problem)
        if first_block:
            block, steps = call.staging(nbytes)
            yield from steps
            first_block = False
        else:
            yield from call.meet()  # all ranks have read the block before, which this one overwrites
            block = team.staging.grow(nbytes)
        u = block.array((depth, width), problem.dtype)
        v = block.array((depth, problem.shape[1]), problem.dtype, second)
        mine = slice(int(first[team.rank]), int(last[team.rank]))
        low = int(offsets[team.rank])
        u[low : low + mine.stop - mine.start] = factors.u[mine, columns]
        v[low : low + mine.stop - mine.start] = factors.v[mine]
        if problem.place.nodes > 1:
            yield from posted(_across(call, u, v, counts, offsets), final)
        yield from call.meet()
        return u, v

    yield from blocks(problem, call, receiver, gather)


def _packed(problem: Problem) -> bool:
    """Return whether u and v of a rank travel as one message: they are small, and it has a partner on every node."""
    place = problem.place
    return place.nodes > 1 and problem.packed and place.ranks == place.nodes * place.ranks_per_node


def _across_packed(problem: Problem, call: Call, factors: Factors, u: np.ndarray, v: np.ndarray) -> Iterator[Any]:
    """Bring the factors of this rank's partners on other nodes into the memory that its node shares."""
    team = call.team
    ((slot, comm),) = team.across()
    messages = call.buffer((team.nodes, factors.u.size + factors.v.size), problem.dtype)
    yield from posted(call.allgather_packed(comm, factors, messages), True)
    lows = counts_by_node(problem.offsets, team, slot)
    for node, message in enumerate(messages):
        if node != comm.rank:
            samples = slice(lows[node], lows[node] + len(factors))
            u[samples] = message[: factors.u.size].reshape(factors.u.shape)
            v[samples] = message[factors.u.size :].reshape(factors.v.shape)


def _across(
    call: Call, u: np.ndarray, v: np.ndarray, counts: np.ndarray | None = None, offsets: np.ndarray | None = None
) -> list[Any]:
    """Bring the samples of each slot to every node, straight into the memory that its ranks share."""
    requests = []
    for slot, comm in call.team.across():
        its_counts, its_offsets = (
            None if values is None else counts_by_node(values, call.team, slot) for values in (counts, offsets)
        )
        for gathered in (u, v):
            requests += call.allgather(comm, call.team.in_place, gathered, its_counts, its_offsets)
    return requests


def _gathered(problem: Problem, call: Call, block: Block, second: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return u and v of all ranks in the memory of the node, and where this rank's samples begin."""
    views = problem.memo.get("views")
    if views is None or views[0] is not block or views[1] is not problem.counts:
        u = block.array((problem.depth, problem.shape[0]), problem.dtype)
        v = block.array((problem.depth, problem.shape[1]), problem.dtype, second)
        views = problem.memo["views"] = block, problem.counts, u, v, int(problem.offsets[call.team.rank])
    return views[2:]


def _second(depth: int, width: int, problem: Problem) -> tuple[int, int]:
    """Return the byte at which v begins behind ``width`` columns of u, and the bytes of both."""
    second = -(-depth * width * problem.itemsize // _ALIGN) * _ALIGN
    return second, second + depth * problem.shape[1] * problem.itemsize
