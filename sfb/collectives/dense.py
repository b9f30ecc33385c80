"""Dense: the ranks sum their local products, within a node in its memory, between nodes by MPI's own Allreduce.

With one rank per node, small products take the rounds of the agreement (`sfb.runtime.rounds`): the rounds sum them if
the number of ranks is a power of two; otherwise each rank gathers and sums them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.collectives.update import former, own_rows, posted
from sfb.factors import Factors
from sfb.kernels.sparse import order_bytes
from sfb.receiver import Assign, Receiver
from sfb.runtime.limits import HALVING_LIMIT
from sfb.runtime.steps import POSTED
from sfb.tuning.profile import Use

if TYPE_CHECKING:
    from sfb.runtime.team import Team
    from sfb.runtime.windows import Block

__all__ = ["bind", "calls", "cost", "payload", "prepare", "run", "staging_bytes", "suits", "wire_bytes"]

# A rank's product goes through its slab of the node's memory in pieces of at least so many bytes, so that they are few,
# and of at least so many rows, which repay packing v.
_SLAB, _ROWS = 1 << 20, 128
_ALIGN = 64
# The time of a pass over a slab, which is in cache, relative to a pass over memory.
_CACHED = 0.3


def suits(problem: Problem) -> bool:
    """Return whether "auto" may take this algorithm: unless the receiver needs all factors."""
    return not problem.whole


def cost(problem: Problem) -> list[Use]:
    """Price 2KD(P−1)/P elements on the wire and 2SKD flop (Thakur et al., IJHPCA 2005, section 4.4)."""
    product = problem.product_cost(problem.deepest)
    passes = problem.passes - problem.assigns
    if _summed(problem):
        share = _share(problem)
        summed = Use("pass", _CACHED * share * (problem.ranks - 1) + problem.passes * problem.dense_bytes)
        return [*product, *problem.eager_cost(share), Use("allgather", times=_halved(problem)), summed]
    if _gathered(problem):
        summed = Use("pass", (_CACHED * problem.ranks + problem.passes) * problem.dense_bytes)
        return [*product, *problem.eager_cost(problem.dense_bytes), summed]
    if problem.place.nodes > 1 or problem.ranks == 1:
        own = 0 if problem.assigns and not problem.shared else (1 + passes) * problem.dense_bytes * problem.share
        count = calls(problem)
        product = problem.product_cost(problem.deepest, 1 / count, times=count)
        reduced = Use("allreduce", problem.dense_bytes / count, times=count * (problem.ranks > 1))
        return [*product, reduced, Use("sync", times=problem.shared), Use("pass", own)]
    parts, pieces = problem.place.ranks_per_node, max(1, len(_pieces(problem)))
    applied = problem.passes * (1 / parts if problem.shared else 1)
    return [
        *problem.product_cost(problem.deepest, 1 / pieces, times=pieces),
        Use("sync", times=pieces * (1 if problem.shared else 2)),
        Use("pass", (_CACHED * (1 + 2 / parts) + applied) * problem.dense_bytes),
    ]


def calls(problem: Problem) -> int:
    """Return the number of calls of MPI's Allreduce, each of which takes as long as an exchange of next to nothing."""
    if problem.place.nodes == 1 or _summed(problem) or _gathered(problem):
        return 1
    return max(1, -(-problem.shape[0] // _network_rows(problem)))


def wire_bytes(problem: Problem, rank: int = 0) -> int:
    """Return the bytes of a product in each round, of all products, or, as a ring and a node's memory, 2KD(P−1)/P."""
    if _summed(problem) and not _halved(problem):
        return _rounds(problem) * problem.dense_bytes
    if _gathered(problem):
        return (problem.ranks - 1) * problem.dense_bytes
    return 2 * problem.dense_bytes * (problem.ranks - 1) // problem.ranks


def prepare(problem: Problem, team: Team) -> None:
    """Allocate the slabs, or the local product and the messages; and for CSR v room for the order of its non-zeros."""
    sizes = [] if problem.nonzeros is None else [order_bytes(problem.room, problem.itemsize)]
    if team.nodes == 1 and team.size > 1:
        team.staging.grow(staging_bytes(problem))
    elif _summed(problem):
        sizes += [problem.dense_bytes, *[_message(problem, team)] * 2]
    elif _gathered(problem):
        sizes += [problem.ranks * problem.dense_bytes]
    elif not (problem.assigns and not problem.shared):
        sizes += [_network_rows(problem) * problem.shape[1] * problem.itemsize]
    team.pool.reserve(*sizes)


def payload(problem: Problem) -> tuple[int, int] | None:
    """Return the payload of an eager exchange, a product, and its bytes; None if it exceeds the eager limit."""
    from sfb.kernels.eager import PRODUCTS, SUM

    if _summed(problem):
        return SUM, problem.dense_bytes
    return (PRODUCTS, problem.dense_bytes) if _gathered(problem) else None


def staging_bytes(problem: Problem) -> int:
    """Return the bytes of staging memory: two sets of slabs, used alternately."""
    return 2 * problem.place.ranks_per_node * _slab_bytes(problem)


def bind(problem: Problem, team: Team, block: Block) -> tuple[np.ndarray, int]:
    """Return ``bound`` of the fused kernel (`sfb.kernels.fused`), over the staging memory, and the number of pieces."""
    from sfb.kernels import fused

    board, pieces = team.board, _pieces(problem)
    size = _slab_bytes(problem)
    slabs = block.array((2 * board.ranks, size // problem.itemsize), problem.dtype)
    samples, high = int(problem.counts[team.rank]), pieces[0][1] if pieces else 1
    start = board.ranks, board.me, board.patience, samples, problem.shared, board.words
    return fused.bind_dense(*start, slabs, high, len(pieces)), len(pieces)


def run(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Form the local product, reduce it, and let the receiver take it."""
    if call.team.nodes == 1 and call.team.size > 1:
        yield from _on_node(problem, call, factors, receiver)
    elif _summed(problem):
        yield from _sum(problem, call, factors, receiver)
    elif _gathered(problem):
        yield from _gather(problem, call, factors, receiver)
    else:
        yield from _between_nodes(problem, call, factors, receiver)


def _between_nodes(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    in_place = isinstance(receiver, Assign) and not problem.shared
    rows, columns = problem.shape
    high = _network_rows(problem)
    form = former(call, factors)
    product = None if in_place else call.buffer((min(high, rows), columns), problem.dtype)
    for low in range(0, rows, high):
        end = min(low + high, rows)
        piece = receiver.array[low:end] if product is None else product[: end - low]
        with call:
            form(piece, low, end)
        if problem.ranks > 1:
            yield from posted(call.allreduce(call.team.world, piece), end == rows)
        if not in_place:
            with call:
                receiver.update_dense(piece, *own_rows(problem, call.team, low, end), low, threads=call.team.threads)
    if problem.shared:
        yield from call.meet(last=True)


def _gather(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Sum the products of all ranks in their order."""
    rows, threads = problem.shape[0], call.team.threads
    form = former(call, factors)
    gathered = call.buffer((problem.ranks, *problem.shape), problem.dtype)
    products = list(gathered)
    with call:
        form(products[call.team.rank], 0, rows)
    yield from posted(call.allgather_in_place(call.team.world, gathered.reshape(problem.ranks, -1)), True)
    with call:
        total = products[0]
        for product in products[1:]:
            total += product
        receiver.update_dense(total, 0, rows, threads=threads)


def _sum(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Sum the products in the rounds of the agreement."""
    team = call.team
    agree, rows = team.agree, problem.shape[0]
    yield POSTED  # the tag of its messages is that of this call
    form = former(call, factors)
    total = call.buffer(problem.shape, problem.dtype)
    with call:
        form(total, 0, rows)
    words, received = (call.buffer((_message(problem, team) // 8,), np.dtype(np.int64)) for _ in range(2))
    words[: agree.head] = 0
    yield from agree.rounds.sum(call.name, call.number, words, received, total)
    with call:
        receiver.update_dense(total, 0, rows, threads=team.threads)


def _message(problem: Problem, team: Team) -> int:
    """Return the bytes of the headers of all ranks and a product."""
    return 8 * (problem.ranks * team.agree.head + -(-problem.dense_bytes // 8))


def _summed(problem: Problem) -> bool:
    """Return whether the rounds of the agreement sum the products, as they are small."""
    power = problem.ranks & (problem.ranks - 1) == 0
    limit = problem.eager_limit * (1 + _halved(problem))  # then no message has more than half of the product
    small = problem.dense_bytes <= min(limit, problem.max_bytes // 3)
    return problem.one_rank_per_node and power and small


def _rounds(problem: Problem) -> int:
    return problem.ranks.bit_length() - 1


def _share(problem: Problem) -> float:
    """Return the bytes of each rank in an allgather that receives as many bytes as the sum."""
    if _halved(problem):
        return 2 * problem.dense_bytes / problem.ranks
    return problem.dense_bytes * _rounds(problem) / (problem.ranks - 1)


def _halved(problem: Problem) -> bool:
    """Return whether the rounds divide the sum among nodes, which doubles their number."""
    return problem.dense_bytes >= HALVING_LIMIT


def _gathered(problem: Problem) -> bool:
    """Return whether each rank gathers all products, as they are few and small."""
    small = problem.eager(problem.dense_bytes) and problem.ranks * problem.dense_bytes <= problem.max_bytes
    return small and not _summed(problem)


def _on_node(problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
    """Sum in the order of ranks, each rank its share of a piece's rows; pieces use two sets of slabs alternately."""
    team = call.team
    block, steps = call.staging(staging_bytes(problem))
    form = former(call, factors)
    yield from steps
    memo = problem.memo.get("pieces")
    if memo is None or memo[0] is not block:
        memo = problem.memo["pieces"] = (
            block,
            [_slabs(problem, block, call, *piece) for piece in enumerate(_pieces(problem))],
        )
    for low, high, slabs, mine, total, (start, stop) in memo[1]:
        with call:
            form(mine, low, high)
        yield from call.meet()
        with call:
            kernels.reduce(slabs, start * problem.shape[1], stop * problem.shape[1])
            if problem.shared:
                receiver.update_dense(total, low + start, low + stop, low, threads=team.threads)
        if not problem.shared:
            yield from call.meet()
            with call:
                receiver.update_dense(total, low, high, low, threads=team.threads)
    if problem.shared:
        yield from call.meet(last=True)


def _slabs(problem: Problem, block: Block, call: Call, piece: int, rows: tuple[int, int]) -> tuple[Any, ...]:
    """Return a piece's rows, its slabs, this rank's product and the sum in them, and the rows that this rank sums."""
    board, (low, high) = call.team.board, rows
    size, shape = _slab_bytes(problem), (high - low, problem.shape[1])
    elements = shape[0] * shape[1]
    slabs = block.array((board.ranks, size // problem.itemsize), problem.dtype, piece % 2 * board.ranks * size)
    mine, total = (slabs[i, :elements].reshape(shape) for i in (board.me, 0))
    start, stop = ((high - low) * (board.me + i) // board.ranks for i in (0, 1))
    return low, high, slabs, mine, total, (start, stop)


def _pieces(problem: Problem) -> list[tuple[int, int]]:
    rows = problem.shape[0]
    width = max(1, problem.shape[1] * problem.itemsize)
    ceiling = max(1, problem.max_bytes // (2 * problem.place.ranks_per_node * width))
    high = min(max(_ROWS, _SLAB // width), ceiling)
    high = -(-rows // max(1, round(rows / high)))  # of even size
    return [(low, min(low + high, rows)) for low in range(0, rows, high)] if rows else []


def _slab_bytes(problem: Problem) -> int:
    nbytes = problem.memo.get("slab")
    if nbytes is None:
        rows = max((high - low for low, high in _pieces(problem)), default=0)
        nbytes = problem.memo["slab"] = -(-rows * problem.shape[1] * problem.itemsize // _ALIGN) * _ALIGN
    return nbytes


def _network_rows(problem: Problem) -> int:
    """Return the rows that one Allreduce takes."""
    width = max(1, problem.shape[1] * problem.itemsize)
    return max(1, min(problem.shape[0], problem.max_bytes // width))
