"""Rounds of messages between the leaders of nodes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.kernels import status
from sfb.runtime.board import Board
from sfb.runtime.limits import HALVING_LIMIT, SPINS, tag
from sfb.runtime.seals import DamagedMessageError

__all__ = ["Rounds", "RoundsRequest", "order", "schedule"]


class Rounds:
    """Messages between the leaders of nodes. A round doubles the number of nodes whose messages a node has.

    The rounds follow recursive doubling where the number of nodes is a power of two, and Bruck's algorithm otherwise
    (Thakur, Rabenseifner and Gropp, IJHPCA 19(1), 2005, section 4.1). Sums of `HALVING_LIMIT` bytes and more follow
    recursive halving and doubling (section 4.4). A message is a head and a payload (`sfb.kernels.header`); its tag is
    the number of the call.

    Args:
        world: The library's own communicator.
        board: The board of this rank's node.
        members: The ranks of each node, the leader first.
        home: This rank's node.
        head: Words of a message before its payload.
        checked: Whether messages have checksums.

    Attributes:
        board: The board of this rank's node.
        order: The nodes in the order in which their messages come, this one first.
        sums: Whether `sum` serves: the number of nodes is a power of two.
        mpi: MPI's functions and handles, as `sfb.kernels.rounds` takes them.
        plan: The rounds, as `sfb.kernels.rounds` takes them.
        under_way: For each call under way, by its number, the memory that MPI may write to.
    """

    def __init__(
        self,
        world: MPI.Intracomm,
        board: Board,
        members: Sequence[Sequence[int]],
        home: int,
        head: int,
        *,
        checked: bool = True,
    ) -> None:
        from sfb.kernels import rounds

        self._kernels = rounds
        self.board = board
        self._head = head
        nodes = len(members)
        self.sums = nodes & (nodes - 1) == 0
        self.order = order(nodes, home)
        self.plan = schedule(members, home, checked=checked)
        self._leaders = [ranks[0] for ranks in members]
        self._heads = list(range(0, nodes * head + 1, head))
        self._sources = [
            [rank for node in self.order[known : known + learnt] for rank in members[node]]
            for known, learnt, *_ in self.plan[:-1].tolist()
        ]
        self.mpi = _describe(world) if nodes > 1 else np.empty(0, np.int64)
        self.under_way: dict[int, tuple[Any, ...]] = {}

    def gather(
        self, call: str, number: int, words: np.ndarray, length: int, patience: float | None = None
    ) -> Generator[Any, None, list[int]]:
        """Gather the messages of all nodes in ``words``, in `order`; in steps.

        Args:
            call: The user's call, for messages.
            number: The number of the call.
            words: This node's message, and room for the messages of the others.
            length: Words of this node's message.
            patience: Seconds after which to give up; None to wait as long as it takes.

        Returns:
            Where each message begins, and where the last ends; fewer if patience ran out.

        Raises:
            DamagedMessageError: A message has arrived damaged on this node, or on one whose messages come later.
        """
        starts = np.empty(len(self.order) + 1, np.int64)
        starts[0], starts[1] = 0, length
        request = self._request(call, number, self._kernels.gather, words, starts)
        if patience is not None:
            request.give_up_after(patience)
        elif not request.Test():
            yield request
        self._check(request)
        return starts[: request.known + 1].tolist()

    def sum(
        self, call: str, number: int, words: np.ndarray, received: np.ndarray, values: np.ndarray
    ) -> Generator[Any, None, list[int]]:
        """Gather the heads of all nodes, and sum their ``values`` to the same bits on all nodes; in steps.

        Nodes that call `gather` instead take part in the same rounds. No node forms a sum then, nor where headers
        differ.

        Args:
            call: The user's call, for messages.
            number: The number of the call.
            words: This node's head, then room for the heads of all nodes and for the values.
            received: As much room.
            values: A matrix, of the same size on all nodes; receives the sum.

        Returns:
            Where the heads begin in ``words``, and where the last ends.

        Raises:
            DamagedMessageError: As `gather` does; ``values`` is no sum then.
        """
        request = self._request(call, number, self._kernels.sum_values, words, received, values)
        if not request.Test():
            yield request
        self._check(request)
        return self._heads

    def damage(self, note: int) -> DamagedMessageError:
        """Return the error that a note stands for, of the kernels or of a rank of this node."""
        node, sender = note >> 32, note & 0xFFFFFFFF
        error = DamagedMessageError(
            f"a message from rank {sender} was damaged, cut or repeated on its way to rank {self._leaders[node]}"
        )
        error.note = note
        return error

    def _check(self, request: RoundsRequest) -> None:
        if request.code == status.DAMAGED:
            raise self.damage(request.fault)

    def missing(self, rounds_over: int) -> list[int]:
        """Return the ranks whose messages the next round brings.

        After the last round a sum that was divided is gathered, by the same rounds in the opposite order.
        """
        return self._sources[min(rounds_over, 2 * len(self._sources) - 1 - rounds_over)]

    def _request(self, call: str, number: int, kernel: Callable[..., int], *arrays: np.ndarray) -> RoundsRequest:
        state = np.zeros(self._kernels.STATE, np.int64)

        def advance(spins: int) -> int:
            return kernel(self.mpi, self.plan, state, spins, tag(number), self._head, *arrays)

        return RoundsRequest(self, call, number, advance, state, *arrays)


def order(nodes: int, home: int) -> list[int]:
    """Return the nodes in the order in which their messages come to ``home``, itself first."""
    power_of_two = nodes & (nodes - 1) == 0
    return [home ^ i if power_of_two else (home + i) % nodes for i in range(nodes)]


def schedule(members: Sequence[Sequence[int]], home: int, *, checked: bool = True) -> np.ndarray:
    """Return the rounds of a node as `sfb.kernels.rounds` takes them.

    Args:
        members: The ranks of each node, the leader first.
        home: The node.
        checked: Whether messages have checksums.
    """
    nodes, nearest = len(members), order(len(members), home)
    rounds, known = [], 1
    while known < nodes:
        learnt = min(known, nodes - known)
        source, target = nearest[known], nearest[known if nodes & (nodes - 1) == 0 else -known]
        rounds.append((known, learnt, members[source][0], members[target][0]))
        known += learnt
    return np.array([*rounds, (nodes, home, HALVING_LIMIT, checked)], np.int64)


class RoundsRequest:
    """The rounds of one call, for whose messages a leader waits as for an MPI request.

    Args:
        rounds: The rounds.
        call: The user's call, for messages.
        number: The number of the call.
        advance: Goes on, after at most so many looks for each message; returns a code of `sfb.kernels.status`.
        state: The state of the call (`sfb.kernels.rounds`).
        arrays: Other objects that have to stay alive until all messages have come.

    Attributes:
        code: The code that ``advance`` returned last.
    """

    def __init__(
        self, rounds: Rounds, call: str, number: int, advance: Callable[[int], int], state: np.ndarray, *arrays: Any
    ) -> None:
        self._rounds = rounds
        self._call = call
        self._number = number
        self._advance = advance
        self._state = state
        self.code: int = status.PENDING
        rounds.under_way[number] = state, *arrays

    @property
    def known(self) -> int:
        """The number of nodes whose messages have come, this one among them."""
        return int(self._rounds.plan[self._state[0], 0])

    @property
    def fault(self) -> int:
        """Where a message was damaged (`Rounds.damage`), if the code says that one was."""
        return int(self._state[self._rounds._kernels.WRONG])

    def Test(self) -> bool:
        """Go on without waiting, and return whether all messages have come."""
        return self._look(0)

    def Wait(self) -> None:
        """Wait for all messages."""
        watch = None
        while not self._look(SPINS):
            watch = watch or self._rounds.board.watch()
            watch.look(lambda: self._rounds.missing(int(self._state[0])), self._call)

    def give_up_after(self, seconds: float) -> None:
        """Wait for all messages for at most ``seconds``, then cancel those under way."""
        clock = self._rounds.board.clock
        end = clock() + seconds
        while not self.Test():
            if clock() > end:
                self._cancel()
                return

    def _look(self, spins: int) -> bool:
        self.code = self._advance(spins)
        if self.code == status.PENDING:
            return False
        if self.code > 0:
            raise MPI.Exception(self.code)
        self._rounds.under_way.pop(self._number, None)
        return True

    def _cancel(self) -> None:
        size = int(self._rounds.mpi[-1])
        first = 8 * self._rounds._kernels.REQUESTS
        handles = self._state.view(np.uint8)[first : first + 2 * size].view(np.uint32 if size == 4 else np.uint64)
        for handle in handles.tolist():
            request = MPI.Request.fromhandle(handle)
            if request != MPI.REQUEST_NULL:
                request.Cancel()
                request.Wait()
        self._rounds.under_way.pop(self._number, None)


def _describe(comm: MPI.Intracomm) -> np.ndarray:
    """Return MPI's functions and handles as `sfb.kernels.rounds` takes them."""
    library = ctypes.CDLL(MPI.__file__)  # finds the functions of the MPI that mpi4py is linked with
    missing = [name for name in _FUNCTIONS if not hasattr(library, name)]
    if missing:
        raise ImportError(f"the library that mpi4py is linked with does not export {', '.join(missing)}")
    functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _FUNCTIONS]
    handles = [MPI._handleof(comm), MPI._handleof(MPI.BYTE), MPI._sizeof(MPI.Request)]
    return np.array([*functions, *handles], np.uint64).view(np.int64)


_FUNCTIONS = "MPI_Isend", "MPI_Irecv", "MPI_Testall"
