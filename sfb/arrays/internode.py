"""Sums of arrays between nodes, by messages of many blocks under way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from os import sched_yield
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

if TYPE_CHECKING:
    from sfb.runtime.board import Watch
    from sfb.runtime.team import Team

__all__ = ["Network"]

# Blocks under way at once, and the bytes of one: of at least a message to every peer, more where an array is large.
_UNDER_WAY, _BLOCKS, _MESSAGE = 3, (1 << 19, 1 << 21), 1 << 16
# Tests between two looks at the clock.
_TESTS = 1024
# A call has two tags; what MPI guarantees.
_TAGS = 32768 // 2


class Network:
    """Allreduce among the ranks that have the same place on their nodes.

    An array travels in blocks. Of each, every peer receives one part from all others, reduces it in the order of nodes,
    and sends it to all others: like a ring (Patarasuk and Yuan, JPDC 2009) 2(N−1)/N of its bytes each way, but in two
    steps rather than 2(N−1). Meanwhile other blocks are under way.

    Args:
        team: The ranks, as many on each node.
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
        """Return whether there are several nodes, with as many ranks on each."""
        return team.nodes > 1 and len({team.node_of.count(node) for node in range(team.nodes)}) == 1

    def block(self, nbytes: int) -> int:
        """Return the bytes of a block of an array."""
        least, most = _BLOCKS
        return max(_MESSAGE * len(self._peers), min(most, max(least, nbytes // _UNDER_WAY)))

    def reserve(self) -> None:
        """Have the memory that `allreduce` takes: what comes in of the blocks under way."""
        if not self._memory:
            most = max(_MESSAGE * len(self._peers), _BLOCKS[1])
            self._memory = [np.empty(most, np.uint8) for _ in range(_UNDER_WAY)]

    def allreduce(
        self, number: int, reduction: np.ufunc, blocks: Iterator[tuple[np.ndarray, np.ndarray, Callable[[], None]]]
    ) -> None:
        """Reduce block by block.

        Args:
            number: Of the call.
            reduction: Of two arrays; for a sum `numpy.add`.
            blocks: Of each, when it is its turn, what this rank gives and where the result goes, of at most `block`
                bytes and as many on all peers, maybe the same; and what is to be called when that is there.
        """
        tag = 2 * (number % _TAGS)
        under_way: deque[_Block] = deque()
        free = list(self._memory)
        watch: Watch | None = None
        tests = 0
        more = True
        while True:
            while more and len(under_way) < _UNDER_WAY:
                following = next(blocks, None)
                if following is None:
                    more = False
                else:
                    under_way.append(_Block(self, tag, reduction, free.pop(), *following))
            if not under_way:
                return
            moved = False
            for block in under_way:
                moved |= block.advance()
                if not block.reduced:  # others send their parts of blocks in their order
                    break
            if under_way[0].done:
                first = under_way.popleft()
                free.append(first.memory)
                first.then()
            elif not moved:
                sched_yield()
                tests += 1
                if tests % _TESTS == 0:
                    watch = watch or self._team.board.watch()
                    watch.look(lambda: under_way[0].lacking, "Allreduce")


class _Block:
    """A block under way.

    Attributes:
        memory: That it uses.
        then: What is to be called at its end.
        reduced: Whether this rank's part is.
    """

    def __init__(
        self,
        network: Network,
        tag: int,
        reduction: np.ufunc,
        memory: np.ndarray,
        send: np.ndarray,
        recv: np.ndarray,
        then: Callable[[], None],
    ) -> None:
        world, peers, me = network._team.world, network._peers, network._me
        nodes = len(peers)
        self._network = network
        self._tag = tag
        self._reduction = reduction
        self.memory = memory
        self.then = then
        self.reduced = False
        cuts = [send.size * i // nodes for i in range(nodes + 1)]
        parts = [slice(low, high) for low, high in pairwise(cuts)]
        self._recv = recv
        self._parts = parts
        # In an order in which not all send to the same peer at once.
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
        """Whether all is there."""
        return self.reduced and not self._requests

    @property
    def lacking(self) -> list[int]:
        """The ranks that something may be lacking from."""
        return [self._network._peers[peer] for peer in self._others]

    def advance(self) -> bool:
        """Go on if something has come, and return whether it has."""
        if self.done or not MPI.Request.Testall(self._requests):
            return False
        self._requests = []
        if not self.reduced:
            self._reduce()
            self.reduced = True
        return True

    def _reduce(self) -> None:
        """Reduce this rank's part, and send it."""
        network, tag = self._network, self._tag + 1
        world, peers, me = network._team.world, network._peers, network._me
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
