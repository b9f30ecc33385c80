"""Exchanges of factors whose v is CSR, of which only the non-zeros travel: broadcast and node.

A rank's factors are one message of bytes (`sfb.kernels.sparse.pack`). The ranks know the samples and the non-zeros of
all others, hence the place of each message, from the headers of the call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sfb.collectives.call import Call, counts_by_node
from sfb.collectives.node import received
from sfb.collectives.problem import Problem
from sfb.collectives.update import own_rows, posted
from sfb.factors import Factors
from sfb.kernels import sparse
from sfb.receiver import Receiver
from sfb.tuning.profile import Use

if TYPE_CHECKING:
    from sfb.runtime.team import Team

__all__ = ["MOST_NONZEROS", "MOST_SAMPLES", "SparseBroadcast", "SparseNode", "joined_size", "room_for", "split_sizes"]

# The header of a call has one word for the samples of a rank and its non-zeros.
_BITS = 36
MOST_SAMPLES, MOST_NONZEROS = (1 << 63 - _BITS) - 1, (1 << _BITS) - 1
# The least room for non-zeros; beyond it a plan serves numbers of them that differ by up to a factor of two.
_LEAST_ROOM = 1 << 10


def joined_size(samples: int, nonzeros: int) -> int:
    """Return the samples and the non-zeros of a rank in one number, for its header.

    >>> from sfb.collectives.sparse import joined_size, split_sizes
    >>> split_sizes(joined_size(3, 70))
    (3, 70)

    Raises:
        ValueError: They are too many.
    """
    if samples > MOST_SAMPLES or nonzeros > MOST_NONZEROS:
        raise ValueError(
            f"factors with CSR v take {MOST_SAMPLES} samples and {MOST_NONZEROS} non-zeros a rank at most, got "
            f"{samples} and {nonzeros}"
        )
    return samples << _BITS | nonzeros


def split_sizes(size: Any) -> tuple[Any, Any]:
    """Return the samples and the non-zeros, of a number or of an array of numbers."""
    return size >> _BITS, size & MOST_NONZEROS


def room_for(nonzeros: int) -> int:
    """Return the non-zeros of all ranks for which a plan has buffers that is made for a call with ``nonzeros``.

    >>> from sfb.collectives.sparse import room_for
    >>> room_for(5000), room_for(8192)
    (8192, 8192)
    """
    return max(_LEAST_ROOM, 1 << max(0, nonzeros - 1).bit_length())


class _Sparse(ABC):
    """What both algorithms do: gather the messages of all ranks, and let the receiver take their product."""

    def suits(self, problem: Problem) -> bool:
        """Return whether "auto" may take this algorithm: if the factors of all ranks stay within `max_bytes`."""
        return problem.fits

    def cost(self, problem: Problem) -> list[Use]:
        """Price the messages, the order of the non-zeros by column, and the product of these."""
        return [*self._messages(problem), *problem.rebuild_cost(problem.depth, problem.share)]

    def run(self, problem: Problem, call: Call, factors: Factors, receiver: Receiver) -> Iterator[Any]:
        """Gather the messages in the order of ranks, and update this rank's rows."""
        if problem.ranks == 1:
            parts = sparse.parts_of(factors.u, factors.v)
        else:
            words = yield from self._gather(problem, call, factors)
            sizes = problem.counts, problem.nonzeros, problem.words[1]
            parts = sparse.unpack(words, *sizes, problem.shape, problem.dtype)
        memory = call.buffer((sparse.order_bytes(parts.nonzeros, problem.itemsize),), np.dtype(np.uint8))
        start, stop = own_rows(problem, call.team, 0, problem.shape[0])
        if call.damage() is None:  # damaged columns may lie anywhere
            with call:
                receiver.update_sparse(sparse.order(parts, memory), start, stop, threads=call.team.threads)
        if problem.shared:
            yield from call.meet(last=True)

    @abstractmethod
    def _messages(self, problem: Problem) -> list[Use]:
        """Price the exchange."""

    @abstractmethod
    def _gather(self, problem: Problem, call: Call, factors: Factors) -> Generator[Any, None, np.ndarray]:
        """Gather the messages of all ranks, in steps, and return their words."""

    @staticmethod
    def _pack(problem: Problem, call: Call, factors: Factors, words: np.ndarray) -> None:
        """Write this rank's message into its place."""
        sizes, offsets = problem.words
        rank = call.team.rank
        sparse.pack(factors.u, factors.v, words[offsets[rank] : offsets[rank] + sizes[rank]])


class SparseBroadcast(_Sparse):
    """Broadcast: every rank gathers all messages."""

    def _messages(self, problem: Problem) -> list[Use]:
        gather = Use("allgather", problem.message_bytes / problem.ranks, times=problem.ranks > 1)
        return [gather, Use("sync", times=problem.shared)]

    def wire_bytes(self, problem: Problem, rank: int = 0) -> int:
        """Return the bytes of the other ranks' messages."""
        return problem.message_bytes - 8 * int(problem.words[0][rank])

    def prepare(self, problem: Problem, team: Team) -> None:
        """Allocate room for the messages of all ranks, and for the order of their non-zeros."""
        messages = problem.most_bytes if problem.ranks > 1 else 0
        team.pool.reserve(messages, sparse.order_bytes(problem.room, problem.itemsize))

    def _gather(self, problem: Problem, call: Call, factors: Factors) -> Generator[Any, None, np.ndarray]:
        sizes, offsets = problem.words
        words = call.buffer((problem.message_bytes // 8,), np.dtype(np.int64))
        self._pack(problem, call, factors, words)
        team = call.team
        yield from posted(call.gather(team.world, team.in_place, words.reshape(-1, 1), sizes, offsets), True)
        return words


class SparseNode(_Sparse):
    """Node: the messages of all ranks lie once in the memory of each node, and its ranks divide the rebuild."""

    def suits(self, problem: Problem) -> bool:
        """Return whether "auto" may take this algorithm: where it may take `node`, within `max_bytes`."""
        return (problem.place.ranks_per_node > 1 or problem.ranks == 1) and problem.fits

    def _messages(self, problem: Problem) -> list[Use]:
        message = problem.message_bytes / problem.ranks
        across = Use("across", message, times=problem.place.nodes > 1)
        return [Use("copy", message), across, Use("sync", times=1 + problem.shared)]

    def wire_bytes(self, problem: Problem, rank: int = 0) -> int:
        """Return the bytes that this rank reads from its node's other ranks and receives from other nodes."""
        return 8 * sum(received(problem, rank, problem.words[0]))

    def prepare(self, problem: Problem, team: Team) -> None:
        """Allocate room for the messages of all ranks in the memory of the node, and for the order of non-zeros."""
        if problem.place.nodes > 1:
            team.across()
        if problem.ranks > 1:
            team.staging.grow(problem.most_bytes)
        team.pool.reserve(sparse.order_bytes(problem.room, problem.itemsize))

    def _gather(self, problem: Problem, call: Call, factors: Factors) -> Generator[Any, None, np.ndarray]:
        sizes, offsets = problem.words
        team, nbytes = call.team, problem.message_bytes
        block, steps = call.staging(nbytes)
        yield from steps
        words = block.array((nbytes // 8, 1), np.dtype(np.int64))
        self._pack(problem, call, factors, words.reshape(-1))
        if problem.place.nodes > 1:
            requests = []
            for slot, comm in team.across():
                its = [counts_by_node(values, team, slot) for values in (sizes, offsets)]
                requests += call.gather(comm, team.in_place, words, *its)
            yield from posted(requests, True)
        yield from call.meet()
        return words.reshape(-1)
