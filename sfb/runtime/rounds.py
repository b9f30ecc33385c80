"""Rounds of messages between the first ranks of nodes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from time import monotonic
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.kernels import status
from sfb.runtime.board import Board
from sfb.runtime.limits import HALVING_LIMIT, SPINS, tag

__all__ = ["Rounds"]


class Rounds:
    """Exchanges in which what a node knows of the others doubles from round to round.

    By recursive doubling where nodes are a power of two, and otherwise by Bruck's algorithm (Thakur, Rabenseifner and
    Gropp, IJHPCA 19(1), 2005, section 4.1). Sums of `HALVING_LIMIT` bytes and more by recursive halving and doubling
    (section 4.4). A message is a head and a payload (`sfb.kernels.header`); its tag is the number of the call.

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
        self._headers = list(range(0, nodes * head + 1, head))
        plan = []
        self._learnt: list[list[int]] = []
        known = 1
        while known < nodes:
            learnt = [members[node] for node in self.order[known : 2 * known]]
            target = members[self.order[known if self.sums else -known]][0]
            plan.append((known, len(learnt), learnt[0][0], target))
            self._learnt.append([rank for ranks in learnt for rank in ranks])
            known += len(learnt)
        self._plan = np.array([*plan, (nodes, home, HALVING_LIMIT, 0)], np.int64)
        self._mpi = _describe(world) if nodes > 1 else np.empty(0, np.int64)
        # Memory of the calls that are under way, which MPI may write to.
        self._under_way: dict[int, tuple[Any, ...]] = {}

    def gather(
        self, call: str, number: int, words: np.ndarray, length: int, patience: float | None = None
    ) -> Generator[Any, None, list[int]]:
        """Put the messages of all nodes into ``words``, in `order`; return where each begins.

        And where the last ends; less, if patience ran out. This node's message, of so many words, is there already.
        """
        moment, starts = self._gathering(call, number, words, length)
        if patience is not None:
            moment.give_up_at(monotonic() + patience)
        elif not moment.Test():
            yield moment
        return starts[: moment.known + 1].tolist()

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
        moment = self._moment(call, number, self._kernels.sum_values, words, received, values)
        if not moment.Test():
            yield moment
        return self._headers

    def bind(self, how: int, samples: int, kind: int, nbytes: int, *arrays: np.ndarray) -> np.ndarray:
        """Return what `sfb.kernels.eager.trade` takes as bound; arguments as of `sfb.kernels.eager.bind`."""
        from sfb.kernels import eager as trade

        return trade.bind(how, self._head, samples, kind, nbytes, self._mpi, self._plan, *arrays)

    def wait(self, call: str, number: int, go: Callable[[int], int], state: np.ndarray, *arrays: np.ndarray) -> int:
        """Wait until an exchange of `sfb.kernels.eager` is over, and return what came of it.

        Args:
            call: The user's call, for messages.
            number: Of the call.
            go: Goes on, looking for a message so often.
            state: Of the exchange.
            arrays: That it needs besides.
        """
        return _Moment(self, call, number, go, state, *arrays).finish()

    def _gathering(self, call: str, number: int, words: np.ndarray, length: int) -> tuple[_Moment, np.ndarray]:
        starts = np.empty(len(self.order) + 1, np.int64)
        starts[0], starts[1] = 0, length
        return self._moment(call, number, self._kernels.gather, words, starts), starts

    def _moment(self, call: str, number: int, kernel: Callable[..., int], *arrays: np.ndarray) -> _Moment:
        state = np.zeros(self._kernels.STATE, np.int64)

        def go(spins: int) -> int:
            return kernel(self._mpi, self._plan, state, spins, tag(number), self._head, *arrays)

        return _Moment(self, call, number, go, state, *arrays)


class _Moment:
    """The moment when the messages of all rounds of a call have come.

    Args:
        rounds: The rounds.
        call: The user's call, for messages.
        number: Of the call.
        go: Goes on, looking for a message so often.
        state: Of the call.
        arrays: That it needs besides.
    """

    def __init__(
        self, rounds: Rounds, call: str, number: int, go: Callable[[int], int], state: np.ndarray, *arrays: Any
    ) -> None:
        self._rounds = rounds
        self._call = call
        self._number = number
        self._go = go
        self._state = state
        rounds._under_way[number] = state, *arrays

    @property
    def known(self) -> int:
        """Nodes whose messages have come, this one among them."""
        return int(self._rounds._plan[self._state[0], 0])

    def Test(self) -> bool:
        return self._look(0) != status.PENDING

    def Wait(self) -> None:
        self.finish()

    def finish(self) -> int:
        """Wait, and return what came of it."""
        watch = None
        while (code := self._look(SPINS)) == status.PENDING:
            board = self._rounds._board
            watch = watch or board.watch()
            watch.look(self._missing, self._call)
        return code

    def give_up_at(self, end: float) -> None:
        """Wait until ``end`` at most; messages that are under way then are cancelled."""
        while not self.Test():
            if monotonic() > end:
                self._cancel()
                return

    def _look(self, spins: int) -> int:
        code = self._go(spins)
        if code == status.PENDING:
            return code
        if code > 0:
            raise MPI.Exception(code)
        self._rounds._under_way.pop(self._number, None)
        return code

    def _missing(self) -> list[int]:
        """Return the ranks whose messages come next; sums are gathered from the same, in the opposite order."""
        learnt, turn = self._rounds._learnt, int(self._state[0])
        return learnt[min(turn, 2 * len(learnt) - 1 - turn)]

    def _cancel(self) -> None:
        size = int(self._rounds._mpi[-1])
        first = 8 * self._rounds._kernels.REQUESTS
        places = self._state.view(np.uint8)[first : first + 2 * size].view(np.uint32 if size == 4 else np.uint64)
        for handle in places.tolist():
            request = MPI.Request.fromhandle(handle)
            if request != MPI.REQUEST_NULL:
                request.Cancel()
                request.Wait()
        self._rounds._under_way.pop(self._number, None)


def _describe(comm: MPI.Intracomm) -> np.ndarray:
    """Return what `sfb.kernels.rounds` takes of MPI."""
    library = ctypes.CDLL(MPI.__file__)  # what this is linked with counts, too
    missing = [name for name in _FUNCTIONS if not hasattr(library, name)]
    if missing:
        raise ImportError(f"the library that mpi4py is linked with does not export {', '.join(missing)}")
    functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _FUNCTIONS]
    handles = [MPI._handleof(comm), MPI._handleof(MPI.BYTE), MPI._sizeof(MPI.Request)]
    return np.array([*functions, *handles], np.uint64).view(np.int64)


_FUNCTIONS = "MPI_Isend", "MPI_Irecv", "MPI_Testall"
