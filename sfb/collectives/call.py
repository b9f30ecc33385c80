"""One exchange under way on this rank: what it waits for, and the collectives it waits with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from sfb.kernels import half
from sfb.runtime import limits

if TYPE_CHECKING:
    from mpi4py import MPI

    from sfb.factors import Factors
    from sfb.runtime.team import Team
    from sfb.runtime.windows import Block

__all__ = ["Call", "counts_by_node"]

_NOTHING: list[Any] = []


class Call:
    """One call of an algorithm.

    A collective returns what there is to wait for: nothing where the call blocks. Waiting is by `Test`
    and `Wait`, as of MPI's requests.

    Args:
        team: The ranks.
        number: Of the call, the same on all ranks.
        name: The user's call, for messages.
        blocking: Wait inside the collectives.
        wire: Format of 16 bits in which factors travel between ranks; they have been rounded to it.

    Attributes:
        rebuild_seconds: Time spent in forming and applying the sum so far.
    """

    __slots__ = (
        "_acquired",
        "_began",
        "_named",
        "_phase",
        "blocking",
        "name",
        "number",
        "rebuild_seconds",
        "team",
        "wire",
    )

    def __init__(
        self,
        team: Team,
        number: int,
        name: str,
        *,
        blocking: bool,
        wire: str | None = None,
    ) -> None:
        self.team = team
        self.number = number
        self.blocking = blocking
        self.wire = wire
        self.rebuild_seconds = 0.0
        self.name = name
        self._phase = 1
        self._acquired: list[np.ndarray] = []
        self._named: dict[str, np.ndarray] = {}
        self._began = 0.0

    def __enter__(self) -> None:
        """Begin a part of the rebuild."""
        self._began = perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.rebuild_seconds += perf_counter() - self._began

    def meet(self, last: bool = False) -> list[Any]:
        """Let the ranks of the node see what this one has written, and return what to wait for to see theirs.

        Args:
            last: This rank has finished its part.
        """
        board = self.team.board
        if board.ranks == 1:
            return _NOTHING
        self._phase = board.last_phase if last else self._phase + 1
        if board.join(self.number, self._phase, wait=self.blocking):
            return _NOTHING
        return [board.phase(self.number, self._phase, self.name)]

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "") -> np.ndarray:
        """Return an array that is this call's own until its end, or until it asks for one of the same name."""
        if name in self._named:
            memory = self._named.pop(name)
            self._acquired = [other for other in self._acquired if other is not memory]
            self.team.pool.release(memory)
        array, memory = self.team.pool.acquire(shape, dtype)
        self._acquired.append(memory)
        if name:
            self._named[name] = memory
        return array

    def progress(self) -> None:
        """Let MPI work on what is under way."""
        self.team.world.Iprobe()

    def staging(self, nbytes: int) -> tuple[Block, list[Any]]:
        """Claim the node's staging memory; return it, and what to wait for before it may be written."""
        board, staging = self.team.board, self.team.staging
        block = staging.grow(nbytes)
        user = staging.claim(self.number)
        if not user or board.reached(user, board.last_phase):
            return block, _NOTHING
        return block, [board.phase(user, board.last_phase, self.name)]

    def finish(self) -> None:
        """Give back buffers, and let the others see that this rank is done with shared memory."""
        if self._phase != self.team.board.last_phase:
            self.team.board.reach(self.number, self.team.board.last_phase)
        while self._acquired:
            self.team.pool.release(self._acquired.pop())

    def allgather(
        self,
        comm: MPI.Intracomm,
        mine: Any,
        gathered: np.ndarray,
        counts: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
        *,
        later: bool = False,
    ) -> list[Any]:
        """Gather rows of factors: ``counts`` of them from each rank go to ``offsets`` of ``gathered``, a matrix.

        As many from each rank, in their order, by default. ``later``, not before what is returned has been waited for,
        even where the call blocks.
        """
        if self.wire is None:
            return self.gather(comm, mine, gathered, counts, offsets, later=later)
        kind = self.wire
        if counts is None or offsets is None:
            counts, offsets = _alike(comm, gathered)
        halves = self.buffer(gathered.shape, np.dtype(np.uint16))
        low = int(offsets[comm.rank])
        own = slice(low, low + int(counts[comm.rank]))
        half.pack(np.ascontiguousarray(gathered[own] if mine is self.team.in_place else mine), halves[own], kind)

        def unpack() -> None:
            for count, first in zip(counts, offsets, strict=True):
                rows = slice(int(first), int(first) + int(count))
                half.unpack(halves[rows], gathered[rows], kind)

        requests = self.gather(comm, self.team.in_place, halves, counts, offsets, later=later)
        return self._then(requests, unpack, later=later)

    def _then(self, requests: list[Any], do: Callable[[], None], *, later: bool = False) -> list[Any]:
        """Return what to wait for: requests, and what is to be done after them."""
        if self.blocking and not later:
            do()
            return requests
        return [*requests, _Then(do)]

    def gather(
        self,
        comm: MPI.Intracomm,
        mine: Any,
        gathered: np.ndarray,
        counts: np.ndarray | None,
        offsets: np.ndarray | None,
        *,
        later: bool = False,
    ) -> list[Any]:
        """Gather rows as they are; otherwise as `allgather`."""
        if counts is None or offsets is None:
            if gathered.size <= limits.MAX_COUNT:
                return self._gather_alike(comm, mine, gathered, later)
            counts, offsets = _alike(comm, gathered)
        width = gathered.shape[1]
        if gathered.size > limits.MAX_COUNT:
            row, send = self._rows(mine, gathered)
            spec: Any = [gathered, (counts, offsets), row]
        else:
            row, send, spec = None, mine, [gathered, (counts * width, offsets * width)]
        if self.blocking and not later:
            comm.Allgatherv(send, spec)
            requests = []
        else:
            requests = [comm.Iallgatherv(send, spec)]
        if row is not None:
            row.Free()
        return requests

    def _gather_alike(self, comm: MPI.Intracomm, mine: Any, gathered: np.ndarray, later: bool) -> list[Any]:
        if self.blocking and not later:
            comm.Allgather(mine, gathered)
            return []
        return [comm.Iallgather(mine, gathered)]

    def allgather_packed(self, comm: MPI.Intracomm, factors: Factors, messages: np.ndarray) -> list[Any]:
        """Gather u and v of each rank, as many as of this one, as a row of ``messages``."""
        mine = self.buffer((messages.shape[1],), messages.dtype)
        mine[: factors.u.size] = factors.u.reshape(-1)
        mine[factors.u.size :] = factors.v.reshape(-1)
        sent, received = mine, messages
        if self.wire is not None:
            sent, received = (self.buffer(array.shape, np.dtype(np.uint16)) for array in (mine, messages))
            half.pack(mine, sent, self.wire)
        requests = self._gather_alike(comm, sent, received, False)
        if self.wire is None:
            return requests
        return self._then(requests, partial(half.unpack, received, messages, self.wire))

    def allgather_in_place(self, comm: MPI.Intracomm, gathered: np.ndarray) -> list[Any]:
        """Gather an array of each rank as an item of ``gathered``, where this rank's lies already."""
        return self._gather_alike(comm, self.team.in_place, gathered, False)

    def alltoall(
        self, comm: MPI.Intracomm, mine: np.ndarray, sent: np.ndarray, received: np.ndarray, taken: np.ndarray
    ) -> list[Any]:
        """Send ``sent`` elements of ``mine`` to each rank, one after the other, and receive ``taken`` of each."""
        send = [mine, (sent, np.concatenate(([0], np.cumsum(sent)[:-1])))]
        receive = [received, (taken, np.concatenate(([0], np.cumsum(taken)[:-1])))]
        if self.blocking:
            comm.Alltoallv(send, receive)
            return []
        return [comm.Ialltoallv(send, receive)]

    def allreduce(self, comm: MPI.Intracomm, array: np.ndarray) -> list[Any]:
        """Sum a contiguous array over the ranks, in place."""
        flat = array.reshape(-1)
        requests = []
        for low in range(0, flat.size, limits.MAX_COUNT):
            piece = flat[low : low + limits.MAX_COUNT]
            if self.blocking:
                comm.Allreduce(self.team.in_place, piece)
            else:
                requests.append(comm.Iallreduce(self.team.in_place, piece))
        return requests

    def _rows(self, mine: Any, gathered: np.ndarray) -> tuple[MPI.Datatype, Any]:
        """Return a datatype of a row, and what is sent counted in it."""
        row = self.team.datatype(gathered.dtype).Create_contiguous(gathered.shape[1]).Commit()
        return row, mine if mine is self.team.in_place else [mine, len(mine), row]


class _Then:
    """Something to be done once what was to be waited for before has come."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def Test(self) -> bool:
        self._do()
        return True

    def Wait(self) -> None:
        self._do()


def _alike(comm: MPI.Intracomm, gathered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows come from each rank, and where they go, if those are as many of each."""
    rows = len(gathered) // comm.size
    return np.full(comm.size, rows), np.arange(comm.size) * rows


def counts_by_node(values: Sequence[int] | np.ndarray, team: Team, slot: int) -> np.ndarray:
    """Return the value of each node's rank that has ``slot``, 0 where a node has none."""
    result = np.zeros(team.nodes, np.int64)
    for value, node, its in zip(values, team.node_of, team.slot_of, strict=True):
        if its == slot:
            result[node] = value
    return result
