"""Rounds of messages between the first ranks of nodes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from os import sched_yield
from time import monotonic
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.board import Board

__all__ = ["Rounds"]

_TAGS = 32768  # what MPI guarantees


class Rounds:
    """Exchanges in which what a node knows of the others doubles from round to round.

    By recursive doubling where nodes are a power of two, and otherwise by Bruck's algorithm (Thakur, Rabenseifner and
    Gropp, IJHPCA 19(1), 2005, section 4.1). A message is a node's words: a header, of which the last word is the number
    of bytes that follow it, and these. It has the number of the call as tag.

    Args:
        world: The library's own communicator.
        board: That of this rank's node.
        members: The ranks of each node, of which the first exchanges messages.
        home: This rank's node.
        head: Words of a header.

    Attributes:
        order: The nodes as they become known, this one first.
        sums: Whether `sum` serves: nodes are a power of two.
    """

    def __init__(
        self, world: MPI.Intracomm, board: Board, members: Sequence[Sequence[int]], home: int, head: int
    ) -> None:
        self._world = world
        self._board = board
        self._head = head
        self._home = home
        nodes = len(members)
        self.sums = nodes & (nodes - 1) == 0
        self.order = [home ^ i if self.sums else (home + i) % nodes for i in range(nodes)]
        # Of each: the nodes known before, the ranks of those that are learnt, and from whom and to whom messages go.
        self._rounds: list[tuple[int, list[Sequence[int]], int, int]] = []
        known = 1
        while known < nodes:
            learnt = [members[node] for node in self.order[known : 2 * known]]
            target = members[self.order[known if self.sums else -known]][0]
            self._rounds.append((known, learnt, learnt[0][0], target))
            known += len(learnt)

    def gather(
        self, call: str, number: int, words: np.ndarray, length: int, patience: float | None = None
    ) -> Generator[Any, None, list[int]]:
        """Put the messages of all nodes into ``words``, in `order`; return where each begins.

        And where the last ends; less, if patience ran out. This node's message, of so many words, is there already.
        """
        head = self._head
        starts = [0, length]
        for known, learnt, source, target in self._rounds:
            received = self._world.Irecv(words[starts[known] :], source, number % _TAGS)
            sent = self._world.Isend(words[: starts[len(learnt)]], target, number % _TAGS)
            messages = _Messages(self._board, [received, sent], learnt, call)
            if patience is None:
                yield messages
            elif not messages.wait_until(monotonic() + patience):
                break
            for _ in learnt:
                starts.append(starts[-1] + head + (int(words[starts[-1] + head - 1]) + 7) // 8)
        return starts

    def sum(
        self, call: str, number: int, words: np.ndarray, received: np.ndarray, values: np.ndarray
    ) -> Generator[Any, None, list[int]]:
        """Gather the headers of all nodes, and with them add up their ``values``; all come to the same bits.

        In the same rounds as `gather`: other nodes may do that meanwhile. If they do, or if they are about something
        else, there is no sum; the headers show it.

        Args:
            call: The user's call, for messages.
            number: Of the call.
            words: This node's header, then those of all, with nothing behind them; room for the values, too.
            received: As much room.
            values: A vector, of the same size on all nodes.

        Returns:
            Where in ``words`` the headers begin, and the last ends.
        """
        from sfb.kernels import exchange

        head, fits = self._head, True
        for known, learnt, peer, _ in self._rounds:
            length = exchange.give_values(words, known * head, values, fits)
            requests = [
                self._world.Irecv(received, peer, number % _TAGS),
                self._world.Isend(words[:length], peer, number % _TAGS),
            ]
            yield _Messages(self._board, requests, learnt, call)
            fits = exchange.take_values(words, received, head, known, values, fits)
        return [node * head for node in range(len(self.order) + 1)]


class _Messages:
    """Messages between the first ranks of nodes."""

    def __init__(self, board: Board, requests: list[MPI.Request], lacking: Sequence[Sequence[int]], call: str) -> None:
        self._board = board
        self._requests = requests
        self._lacking = lacking
        self._call = call

    def Test(self) -> bool:
        return MPI.Request.Testall(self._requests)

    def wait_until(self, end: float) -> bool:
        while not self.Test():
            if monotonic() > end:
                for request in self._requests:
                    request.Cancel()
                MPI.Request.Waitall(self._requests)
                return False
        return True

    def Wait(self) -> None:
        # Testing lets MPI progress; yielding, what the message may wait for.
        tests = 0
        watch = None
        while not self.Test():
            sched_yield()
            tests += 1
            if tests % 1024 == 0:
                watch = watch or self._board.watch()
                watch.look(lambda: [rank for members in self._lacking for rank in members], self._call)
