"""A call of an algorithm on this rank: its collectives, phases and buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from sfb.factors import Factors
from sfb.kernels import half
from sfb.kernels.header import ROWS
from sfb.receiver import Assign
from sfb.runtime import limits, seals
from sfb.runtime.seals import DamagedMessageError

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

    Between nodes each collective brings seals (`sfb.runtime.seals`) of what ranks have sent beside it. A rank that
    finds damage goes on to the end, since others wait for its part of later collectives, but its receiver takes
    nothing more, and neither do those of the ranks of its node; `finish` raises.

    Attributes:
        rebuild_seconds: Seconds spent so far in forming and applying the sum.
    """

    __slots__ = (
        "_acquired",
        "_began",
        "_damage",
        "_named",
        "_phase",
        "_sealed",
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
        self._damage: DamagedMessageError | None = None
        self._sealed: dict[int, int] | None = {} if team.checked and team.nodes > 1 else None

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
        self.team.board.let_progress()

    def staging(self, nbytes: int) -> tuple[Block, list[Any]]:
        """Claim the node's staging memory; return it, and requests to wait for before writing to it."""
        board, staging = self.team.board, self.team.staging
        block = staging.grow(nbytes)
        user = staging.claim(self.number)
        if not user or board.reached(user, board.last_phase):
            return block, _NOTHING
        return block, [board.phase(user, board.last_phase, self.name)]

    def guard(self, receiver: Any) -> Any:
        """Return a receiver that takes nothing once a message has arrived damaged; an array is overwritten anyway."""
        return receiver if self._sealed is None or isinstance(receiver, Assign) else _Guarded(receiver, self)

    def damage(self) -> DamagedMessageError | None:
        """Return the error of a message that has arrived damaged, here or at another rank of the node."""
        board = self.team.board
        if self._damage is None and self._sealed is not None and board.ranks > 1:
            for finder, mark in zip(board.members, board.marks(self.number), strict=True):
                if mark:
                    text = f"{self.name}: the message of rank {mark - 1} was damaged on its way to rank {finder}"
                    self._damage = DamagedMessageError(text)
                    break
        return self._damage

    def finish(self) -> None:
        """Release the buffers, and announce to the node that this rank no longer uses shared memory.

        Raises:
            DamagedMessageError: A message of the call has arrived damaged, here or at another rank of the node.
        """
        if self._phase != self.team.board.last_phase:
            self.team.board.reach(self.number, self.team.board.last_phase)
        while self._acquired:
            self.team.pool.release(self._acquired.pop())
        damage = self.damage()
        if damage is not None:
            raise damage

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
        counts: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
        *,
        later: bool = False,
    ) -> list[Any]:
        """Gather rows as `allgather` does, without changing their format."""
        if self._sealed is None:
            return self._gather(comm, mine, gathered, counts, offsets, later)
        spans = _alike(comm, gathered) if counts is None or offsets is None else (counts, offsets)
        parts = [gathered[low : low + count] for count, low in zip(*(each.tolist() for each in spans), strict=True)]
        number = self._number(comm)
        own, table = np.empty(seals.WORDS, np.int64), np.empty((comm.size, seals.WORDS), np.int64)
        seals.seal(own, ROWS, number, parts[comm.rank] if mine is self.team.in_place else mine, checked=True)
        sealing = comm.Iallgather(own, table)
        requests = self._gather(comm, mine, gathered, counts, offsets, later)
        return self._sealed_by(sealing, requests, partial(self._verify, comm, table, number, parts), later=later)

    def _number(self, comm: MPI.Intracomm) -> int:
        """Return the number of the next collective of this call on a communicator."""
        assert self._sealed is not None
        ordinal = self._sealed[id(comm)] = self._sealed.get(id(comm), 0) + 1
        return self.number << 20 | ordinal

    def _sealed_by(
        self, sealing: Any, requests: list[Any], verify: Callable[[], None], *, later: bool = False
    ) -> list[Any]:
        """Return requests for a collective, with those for its seals and their comparison."""
        if self.blocking and not later:
            sealing.Wait()
            verify()
            return requests
        return [sealing, *requests, _Then(verify)]

    def _verify(self, comm: MPI.Intracomm, table: np.ndarray, number: int, parts: Sequence[np.ndarray]) -> None:
        """Compare what ranks have sent with their seals."""
        for sender, (words, part) in enumerate(zip(table, parts, strict=True)):
            if sender == comm.rank:
                continue
            wrong = seals.fault(words, ROWS, number, part, checked=True)
            if wrong and self._damage is None:
                group, world = comm.Get_group(), self.team.world.Get_group()
                rank = type(group).Translate_ranks(group, [sender], world)[0]
                group.Free()
                world.Free()
                self._damage = DamagedMessageError(f"{self.name}: the message of rank {rank} {wrong}")
                self.team.board.mark(self.number, 1 + rank)

    def _gather(
        self,
        comm: MPI.Intracomm,
        mine: Any,
        gathered: np.ndarray,
        counts: np.ndarray | None,
        offsets: np.ndarray | None,
        later: bool,
    ) -> list[Any]:
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
        requests = self._gather_framed(comm, sent, received)
        if self.wire is None:
            return requests
        return self._then(requests, partial(half.unpack, received, messages, self.wire))

    def _gather_framed(self, comm: MPI.Intracomm, sent: np.ndarray, received: np.ndarray) -> list[Any]:
        """Gather a row from each rank, with its seal behind it: small messages would wait for another collective."""
        if self._sealed is None:
            return self._gather_alike(comm, sent, received, False)
        number, width = self._number(comm), seals.padded(sent.nbytes)
        table = self.buffer((comm.size, width + seals.BYTES), np.dtype(np.uint8))
        row = table[comm.rank]
        row[: sent.nbytes] = sent.view(np.uint8)
        row[sent.nbytes : width] = 0
        seals.seal(row[width:].view(np.int64), ROWS, number, row[:width], checked=True)

        def unframe() -> None:
            self._verify(comm, table[:, width:].view(np.int64), number, [each[:width] for each in table])
            np.copyto(received, table[:, : sent.nbytes].view(received.dtype))

        return self._then(self._gather_alike(comm, self.team.in_place, table, False), unframe)

    def allgather_in_place(self, comm: MPI.Intracomm, gathered: np.ndarray) -> list[Any]:
        """Gather one item of ``gathered`` from each rank; this rank's is there already."""
        return self.gather(comm, self.team.in_place, gathered)

    def alltoall(
        self, comm: MPI.Intracomm, mine: np.ndarray, sent: np.ndarray, received: np.ndarray, taken: np.ndarray
    ) -> list[Any]:
        """Send ``sent`` elements of ``mine`` to each rank, in their order, and receive ``taken`` elements from each."""
        out, into = (np.concatenate(([0], np.cumsum(counts))) for counts in (sent, taken))
        send, receive = [mine, (sent, out[:-1])], [received, (taken, into[:-1])]
        if self._sealed is None:
            return self._alltoall(comm, send, receive)
        number = self._number(comm)
        own, table = np.empty((2, comm.size, seals.WORDS), np.int64)
        for words, (low, high) in zip(own, pairwise(out.tolist()), strict=True):
            seals.seal(words, ROWS, number, mine[low:high], checked=True)
        sealing = comm.Ialltoall(own, table)
        parts = [received[low:high] for low, high in pairwise(into.tolist())]
        requests = self._alltoall(comm, send, receive)
        return self._sealed_by(sealing, requests, partial(self._verify, comm, table, number, parts))

    def _alltoall(self, comm: MPI.Intracomm, send: list[Any], receive: list[Any]) -> list[Any]:
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


class _Guarded:
    """A receiver that takes nothing once a message of the call has arrived damaged; otherwise as the receiver itself.

    Args:
        receiver: The receiver.
        call: The call.
    """

    def __init__(self, receiver: Any, call: Call) -> None:
        self._receiver = receiver
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._receiver, name)

    def update(self, *arguments: Any, **options: Any) -> None:
        if self._call.damage() is None:
            self._receiver.update(*arguments, **options)

    def update_sparse(self, *arguments: Any, **options: Any) -> None:
        if self._call.damage() is None:
            self._receiver.update_sparse(*arguments, **options)

    def update_dense(self, *arguments: Any, **options: Any) -> None:
        if self._call.damage() is None:
            self._receiver.update_dense(*arguments, **options)


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
