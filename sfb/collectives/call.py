"""A call of an algorithm on this rank: its collectives, phases and buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from sfb.factors import Factors
from sfb.kernels import half
from sfb.runtime import limits

if TYPE_CHECKING:
    from mpi4py import MPI

    from sfb.runtime.team import Team
    from sfb.runtime.windows import Block

__all__ = ["Call", "counts_by_node"]

_NOTHING: list[Any] = []


class Call:
    """One call of an algorithm.

    Its collectives return a list of requests, objects with ``Test`` and ``Wait``; an empty list if the call blocks.

    Args:
        team: The ranks.
        number: The number of the call, the same on all ranks.
        name: The user's call, for messages.
        blocking: Whether the collectives wait for their end.
        wire: The 16-bit format in which factors travel between ranks; the factors have been rounded to it.

    Attributes:
        rebuild_seconds: Seconds spent so far in forming and applying the sum.
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
        """Announce to the node what this rank has written; return requests for the other ranks to do the same.

        Args:
            last: Whether this rank has finished its part.
        """
        board = self.team.board
        if board.ranks == 1:
            return _NOTHING
        self._phase = board.last_phase if last else self._phase + 1
        if board.join(self.number, self._phase, wait=self.blocking):
            return _NOTHING
        return [board.phase(self.number, self._phase, self.name)]

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "") -> np.ndarray:
        """Return an array for this call, to its end or until it asks for another array of the same name."""
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
        """Let MPI progress."""
        self.team.world.Iprobe()

    def staging(self, nbytes: int) -> tuple[Block, list[Any]]:
        """Claim the node's staging memory; return it, and requests to wait for before writing to it."""
        board, staging = self.team.board, self.team.staging
        block = staging.grow(nbytes)
        user = staging.claim(self.number)
        if not user or board.reached(user, board.last_phase):
            return block, _NOTHING
        return block, [board.phase(user, board.last_phase, self.name)]

    def finish(self) -> None:
        """Release the buffers, and announce to the node that this rank no longer uses shared memory."""
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
        """Gather rows of factors from all ranks.

        Args:
            comm: The ranks.
            mine: The rows of this rank, or MPI.IN_PLACE if they are in ``gathered`` already.
            gathered: A matrix that receives the rows.
            counts: The number of rows of each rank; equal numbers by default.
            offsets: The row of ``gathered`` at which the rows of each rank begin.
            later: Return requests even if the call blocks.
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
        """Return requests, with one at the end that calls ``do``; if the call blocks, call ``do`` now."""
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
        """Gather rows as `allgather` does, without changing their format."""
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
        """Gather u and v of each rank as a row of ``messages``; S is the same on all ranks."""
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
        """Gather one item of ``gathered`` from each rank; this rank's is there already."""
        return self._gather_alike(comm, self.team.in_place, gathered, False)

    def alltoall(
        self, comm: MPI.Intracomm, mine: np.ndarray, sent: np.ndarray, received: np.ndarray, taken: np.ndarray
    ) -> list[Any]:
        """Send ``sent`` elements of ``mine`` to each rank, in their order, and receive ``taken`` elements from each."""
        send = [mine, (sent, np.concatenate(([0], np.cumsum(sent)[:-1])))]
        receive = [received, (taken, np.concatenate(([0], np.cumsum(taken)[:-1])))]
        if self.blocking:
            comm.Alltoallv(send, receive)
            return []
        return [comm.Ialltoallv(send, receive)]

    def allreduce(self, comm: MPI.Intracomm, array: np.ndarray) -> list[Any]:
        """Sum a contiguous array over all ranks, in place."""
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
        """Return a datatype of a row, and a specification of the rows that are sent."""
        row = self.team.datatype(gathered.dtype).Create_contiguous(gathered.shape[1]).Commit()
        return row, mine if mine is self.team.in_place else [mine, len(mine), row]


class _Then:
    """A request that calls a function once the requests before it have ended."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def Test(self) -> bool:
        self._do()
        return True

    def Wait(self) -> None:
        self._do()


def _alike(comm: MPI.Intracomm, gathered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts and offsets of rows, the same number from each rank."""
    rows = len(gathered) // comm.size
    return np.full(comm.size, rows), np.arange(comm.size) * rows


def counts_by_node(values: Sequence[int] | np.ndarray, team: Team, slot: int) -> np.ndarray:
    """Return, for each node, the value of its rank ``slot``; 0 if the node has fewer ranks."""
    result = np.zeros(team.nodes, np.int64)
    for value, node, its in zip(values, team.node_of, team.slot_of, strict=True):
        if its == slot:
            result[node] = value
    return result
