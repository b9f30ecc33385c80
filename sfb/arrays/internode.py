"""Allreduce of plain arrays between nodes, in segments of which several are in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from os import sched_yield

import numpy as np
from mpi4py import MPI

from sfb.runtime.board import Watch
from sfb.runtime.team import Team

__all__ = ["SegmentedAllreduce"]

# Segments in flight; the least and the most bytes of one; and the least bytes of a message to a peer.
_IN_FLIGHT, _SEGMENT, _MESSAGE = 3, (1 << 19, 1 << 21), 1 << 16
# Tests between two looks at the clock.
_TESTS = 1024
# A call has two tags; MPI guarantees 32768.
_TAGS = 32768 // 2


class SegmentedAllreduce:
    """Allreduce among the ranks that have the same slot on their nodes.

    An array travels in segments. Every peer receives one part of a segment from all others, reduces it in the order of
    nodes, and sends it to all others: like a ring (Patarasuk and Yuan, JPDC 2009) 2(N−1)/N of its bytes each way, but
    in two steps rather than 2(N−1). Meanwhile other segments are in flight.

    Args:
        team: The ranks, equally many on each node.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        slot = team.slot_of[team.rank]
        self._peers = sorted(
            (rank for rank in range(team.size) if team.slot_of[rank] == slot), key=lambda rank: team.node_of[rank]
        )
        self._me = self._peers.index(team.rank)
        self._memory: list[np.ndarray] = []

    @staticmethod
    def serves(team: Team) -> bool:
        """Return whether there are several nodes, with equally many ranks on each."""
        return team.nodes > 1 and len({team.node_of.count(node) for node in range(team.nodes)}) == 1

    def segment_bytes(self, nbytes: int) -> int:
        """Return the most bytes of a segment of an array of ``nbytes`` bytes."""
        least, most = _SEGMENT
        return max(_MESSAGE * len(self._peers), min(most, max(least, nbytes // _IN_FLIGHT)))

    def reserve(self) -> None:
        """Allocate the memory that `allreduce` needs for what it receives."""
        if not self._memory:
            most = max(_MESSAGE * len(self._peers), _SEGMENT[1])
            self._memory = [np.empty(most, np.uint8) for _ in range(_IN_FLIGHT)]

    def allreduce(
        self, number: int, reduction: np.ufunc, segments: Iterator[tuple[np.ndarray, np.ndarray, Callable[[], None]]]
    ) -> None:
        """Reduce segment by segment.

        Args:
            number: Number of the call.
            reduction: Reduces two arrays; `numpy.add` for a sum.
            segments: Yields, when a segment is to start, this rank's part and where the result goes, maybe the same
                array, of at most `segment_bytes` and equally many on all peers; and what to call when the result is
                there.
        """
        tag = 2 * (number % _TAGS)
        in_flight: deque[_Segment] = deque()
        free = list(self._memory)
        watch: Watch | None = None
        tests = 0
        more = True
        while True:
            while more and len(in_flight) < _IN_FLIGHT:
                following = next(segments, None)
                if following is None:
                    more = False
                else:
                    in_flight.append(_Segment(self, tag, reduction, free.pop(), *following))
            if not in_flight:
                return
            moved = False
            for segment in in_flight:
                moved |= segment.advance()
                if not segment.reduced:  # peers send their parts of segments in order
                    break
            if in_flight[0].done:
                first = in_flight.popleft()
                free.append(first.memory)
                first.then()
            elif not moved:
                sched_yield()
                tests += 1
                if tests % _TESTS == 0:
                    watch = watch or self._team.board.watch()
                    watch.look(lambda: in_flight[0].missing, "Allreduce")


class _Segment:
    """A segment in flight.

    Attributes:
        memory: Where it receives.
        then: What to call when the result is there.
        reduced: Whether this rank's part is reduced.
    """

    def __init__(
        self,
        exchange: SegmentedAllreduce,
        tag: int,
        reduction: np.ufunc,
        memory: np.ndarray,
        send: np.ndarray,
        recv: np.ndarray,
        then: Callable[[], None],
    ) -> None:
        world, peers, me = exchange._team.world, exchange._peers, exchange._me
        nodes = len(peers)
        self._exchange = exchange
        self._tag = tag
        self._reduction = reduction
        self.memory = memory
        self.then = then
        self.reduced = False
        cuts = [send.size * i // nodes for i in range(nodes + 1)]
        parts = [slice(low, high) for low, high in pairwise(cuts)]
        self._recv = recv
        self._parts = parts
        # In this order not all ranks send to the same peer at once.
        self._others = [(me + i) % nodes for i in range(1, nodes)]
        mine = cuts[me + 1] - cuts[me]
        taken = memory[: (nodes - 1) * mine * send.itemsize].view(send.dtype).reshape(nodes - 1, mine)
        self._terms = {peer: taken[i] for i, peer in enumerate(self._others)} | {me: send[parts[me]]}
        self._requests = [world.Irecv(self._terms[peer], peers[peer], tag) for peer in reversed(self._others) if mine]
        self._requests += [
            world.Isend(send[parts[peer]], peers[peer], tag) for peer in self._others if cuts[peer] < cuts[peer + 1]
        ]

    @property
    def done(self) -> bool:
        """Whether the whole result is there."""
        return self.reduced and not self._requests

    @property
    def missing(self) -> list[int]:
        """The ranks whose messages may be missing."""
        return [self._exchange._peers[peer] for peer in self._others]

    def advance(self) -> bool:
        """Go on if all messages of a step have arrived, and return whether they have."""
        if self.done or not MPI.Request.Testall(self._requests):
            return False
        self._requests = []
        if not self.reduced:
            self._reduce()
            self.reduced = True
        return True

    def _reduce(self) -> None:
        """Reduce this rank's part, and send it."""
        exchange, tag = self._exchange, self._tag + 1
        world, peers, me = exchange._team.world, exchange._peers, exchange._me
        mine = self._recv[self._parts[me]]
        terms = [self._terms[peer] for peer in range(len(peers))]
        total = terms[0] if me else terms[1]  # not the user's own
        self._reduction(terms[0], terms[1], out=total if len(terms) > 2 else mine)
        for term in terms[2:]:
            self._reduction(total, term, out=mine if term is terms[-1] else total)
        for peer in reversed(self._others):
            if self._recv[self._parts[peer]].size:
                self._requests.append(world.Irecv(self._recv[self._parts[peer]], peers[peer], tag))
        if mine.size:
            self._requests += [world.Isend(mine, peers[peer], tag) for peer in self._others]
