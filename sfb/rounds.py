"""Rounds of messages between the first ranks of nodes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from time import monotonic
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.board import Board

__all__ = ["Rounds"]

_TAGS = 32768  # what MPI guarantees
_SPINS = 1024  # looks for a message between two at the clock


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
        from sfb.kernels import rounds

        self._kernels = rounds
        self._board = board
        self._head = head
        nodes = len(members)
        self.sums = nodes & (nodes - 1) == 0
        self.order = [home ^ i if self.sums else (home + i) % nodes for i in range(nodes)]
        plan = []
        self._learnt: list[list[int]] = []
        known = 1
        while known < nodes:
            learnt = [members[node] for node in self.order[known : 2 * known]]
            target = members[self.order[known if self.sums else -known]][0]
            plan.append((known, len(learnt), learnt[0][0], target))
            self._learnt.append([rank for ranks in learnt for rank in ranks])
            known += len(learnt)
        self._plan = np.array(plan, np.int64).reshape(-1, 4)
        self._mpi = _describe(world)
        # Memory of the calls that are under way, which MPI may write to.
        self._under_way: dict[int, tuple[np.ndarray, ...]] = {}

    def gather(
        self, call: str, number: int, words: np.ndarray, length: int, patience: float | None = None
    ) -> Generator[Any, None, list[int]]:
        """Put the messages of all nodes into ``words``, in `order`; return where each begins.

        And where the last ends; less, if patience ran out. This node's message, of so many words, is there already.
        """
        starts = np.zeros(len(self.order) + 1, np.int64)
        starts[1] = length
        state = yield from self._go(call, number, self._kernels.gather, (words, starts), patience)
        done = len(self.order) if state[0] == len(self._plan) else int(self._plan[state[0], 0])
        return starts[: done + 1].tolist()

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
            values: A matrix, of the same size on all nodes.

        Returns:
            Where in ``words`` the headers begin, and the last ends.
        """
        yield from self._go(call, number, self._kernels.sum_values, (words, received, values), None)
        return list(range(0, len(self.order) * self._head + 1, self._head))

    def _go(
        self,
        call: str,
        number: int,
        kernel: Callable[..., int],
        arrays: tuple[np.ndarray, ...],
        patience: float | None,
    ) -> Generator[Any, None, np.ndarray]:
        """Run a kernel to its end, or until patience runs out, and return its state."""
        state = np.zeros(self._kernels.STATE, np.int64)

        def go(spins: int) -> bool:
            code = kernel(self._mpi, self._plan, state, spins, number % _TAGS, self._head, *arrays)
            if code < 0:
                raise MPI.Exception(-code)
            return code == self._kernels.DONE

        self._under_way[number] = state, *arrays
        if patience is not None:
            end = monotonic() + patience
            while not go(0) and monotonic() < end:
                pass
            if state[1]:
                self._cancel(state)
        elif not go(0):
            yield _Moment(go, self._board, lambda: self._learnt[state[0]], call)
        del self._under_way[number]
        return state

    def _cancel(self, state: np.ndarray) -> None:
        """Cancel the messages that are under way."""
        size = int(self._mpi[-1])
        first = 8 * self._kernels.REQUESTS
        for place in range(first, first + 2 * size, size):
            handle = state.view(np.uint8)[place : place + size].view(np.uint32 if size == 4 else np.uint64)
            request = MPI.Request.fromhandle(int(handle[0]))
            if request != MPI.REQUEST_NULL:
                request.Cancel()
                request.Wait()


class _Moment:
    """The moment when the messages of all rounds have come."""

    def __init__(self, go: Callable[[int], bool], board: Board, lacking: Callable[[], list[int]], call: str) -> None:
        self._go = go
        self._board = board
        self._lacking = lacking
        self._call = call

    def Test(self) -> bool:
        return self._go(0)

    def Wait(self) -> None:
        watch = None
        while not self._go(_SPINS):
            watch = watch or self._board.watch()
            watch.look(self._lacking, self._call)


def _describe(comm: MPI.Intracomm) -> np.ndarray:
    """Return what `sfb.kernels.rounds` takes of MPI."""
    library = ctypes.CDLL(MPI.__file__)  # what this is linked with counts, too
    functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _FUNCTIONS]
    handles = [MPI._handleof(comm), MPI._handleof(MPI.BYTE), MPI._sizeof(MPI.Request)]
    return np.array([*functions, *handles], np.uint64).view(np.int64)


_FUNCTIONS = "MPI_Isend", "MPI_Irecv", "MPI_Testall"
