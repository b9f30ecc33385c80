"""Pipelined: as broadcast, but u travels in bands of rows, and a rank rebuilds a band while later ones travel.

Every row is the same product as in broadcast, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sfb.collectives import broadcast
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.collectives.update import own_rows
from sfb.factors import Factors
from sfb.receiver import Receiver
from sfb.runtime.steps import POSTED
from sfb.tuning.profile import Use

if TYPE_CHECKING:
    from sfb.runtime.team import Team

__all__ = ["cost", "hides", "prepare", "run", "suits", "wire_bytes"]

# The number of bands at most, and the bytes of a band of all ranks that are worth a message.
_BANDS, _WORTH = 8, 1 << 18
# Multiplications after which a rank lets MPI progress, and the rows that repay packing v once more.
_SLICE, _ROWS = 1 << 28, 96
# The part of the exchange that has to overlap with the rebuild, at least.
_PART = 0.1


def suits(problem: Problem) -> bool:
    """Return whether "auto" may take this algorithm: with one rank per node, if the factors repay several messages."""
    return 1 < problem.ranks == problem.place.nodes and hides(problem) >= _PART


def cost(problem: Problem) -> list[Use]:
    """Price the work of broadcast, in more messages."""
    samples = problem.depth / problem.ranks
    bands = len(_bands(problem))
    rows = problem.shape[0] / bands
    v = Use("allgather", samples * problem.shape[1] * problem.sent_itemsize)
    u = Use("allgather", samples * rows * problem.sent_itemsize, times=bands)
    slices = -(-problem.shape[0] // _rows(problem))
    packed = Use("pass", problem.depth * problem.shape[1] * problem.itemsize, times=max(0, slices - 1))
    return [v, u, Use("sync", times=problem.shared), *problem.rebuild_cost(problem.depth, problem.share), packed]


def hides(problem: Problem) -> float:
    """Return the part of the exchange that may overlap with the rebuild: u without its first band."""
    bands = len(_bands(problem))
    return problem.shape[0] / max(1, sum(problem.shape)) * (bands - 1) / bands


def wire_bytes(problem: Problem, rank: int = 0) -> int:
    """Return the bytes of the other ranks' factors."""
    return broadcast.wire_bytes(problem, rank)


def prepare(problem: Problem, team: Team) -> None:
    """Allocate room for the factors of all ranks, and for this rank's u; both in bands."""
    widths = [high - low for low, high in _bands(problem)]
    if len(widths) < 2:
        broadcast.prepare(problem, team)
        return
    sizes = [problem.depth * problem.shape[1], *(rows * n for n in widths for rows in (problem.depth, problem.deepest))]
    team.pool.reserve(*(size * problem.itemsize for size in sizes))


def run(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Gather v and the bands of u, and update the rows of each band once it has come."""
    bands = _bands(problem)
    if len(bands) < 2:
        yield from broadcast.run(problem, call, factors, receiver)
        return
    world, spans = call.team.world, problem.spans
    v = call.buffer((problem.depth, problem.shape[1]), problem.dtype)
    steps = [call.allgather(world, factors.v, v, *spans, later=True)]
    panels = []
    for low, high in bands:
        own = call.buffer((len(factors), high - low), problem.dtype)
        own[:] = factors.u[:, low:high]
        panels.append(call.buffer((problem.depth, high - low), problem.dtype))
        steps.append(call.allgather(world, own, panels[-1], *spans, later=True))
    yield POSTED
    yield from steps[0]
    for i, (low, high) in enumerate(bands):
        yield from steps[i + 1]
        rest = [request for later in steps[i + 2 :] for request in later]
        start, stop = own_rows(problem, call.team, low, high)
        for begin in range(start, stop, _rows(problem)):
            end = min(begin + _rows(problem), stop)
            with call:
                receiver.update(panels[i], v, begin, end, low, threads=call.team.threads)
            if rest:
                call.progress()
    if problem.shared:
        yield from call.meet(last=True)


def _bands(problem: Problem) -> list[tuple[int, int]]:
    """Return the bands of rows; a single one if more do not repay their messages."""
    rows = problem.shape[0]
    if problem.whole or not problem.fits:
        return [(0, rows)]
    nbytes = problem.depth * rows * problem.sent_itemsize
    parts = max(1, min(_BANDS, rows // _ROWS, nbytes // _WORTH))
    return [(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]


def _rows(problem: Problem) -> int:
    """Return the rows that a rank updates before it lets MPI progress."""
    return max(_ROWS, _SLICE // max(1, problem.depth * problem.shape[1]))
