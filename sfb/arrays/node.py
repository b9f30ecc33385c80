"""Collectives of plain arrays within a node: single calls of kernels, through memory that its ranks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.buffers import fit
from sfb.kernels import status
from sfb.runtime.team import Team
from sfb.runtime.windows import find_named

__all__ = ["ALLREDUCE", "IALLREDUCE", "NodeArrays"]

ALLREDUCE, IALLREDUCE, _SCATTER, _GATHER = "Allreduce", "Iallreduce", "Reduce_scatter_block", "Allgather"
# What has to be equal on all ranks of a call is told by a digest below `sfb.kernels.header.PLAIN`: the function, the
# type of elements, the operation, and where shared arrays lie.
_FUNCTIONS = {ALLREDUCE: 0, _SCATTER: 1, _GATHER: 2, IALLREDUCE: 3}
# In the order of `sfb.kernels._lines.TYPES`.
_TYPES = ("f4", "f8", "i4", "i8")
_OPS = 4
_DIGESTS = len(_FUNCTIONS) * len(_TYPES) * _OPS


class NodeArrays:
    """Collectives of C-contiguous float32, float64, int32 and int64 arrays by the ranks of a node.

    Everything else is left to MPI. Every element is reduced once, in the order of ranks, so that all ranks get the same
    bits, in every run.

    Args:
        team: The ranks.

    Attributes:
        left: Bytes below which arrays are MPI's, and no rank asks another about them: no two of them share memory.
    """

    left = 0

    def __init__(self, team: Team) -> None:
        from sfb.kernels import arrays, sync

        self._kernels, self._sync = arrays, sync
        self._team = team
        self._board = team.board
        self._agree = team.agree
        ops = {arrays.SUM: MPI.SUM, arrays.PROD: MPI.PROD, arrays.MAX: MPI.MAX, arrays.MIN: MPI.MIN}
        self._codes = {op.handle: code for code, op in ops.items()}
        self._kinds = {np.dtype(name): kind for kind, name in enumerate(_TYPES)}
        self._bytes = team.board.window
        self._words = self._bytes.view(np.int64)
        self._state = np.zeros(arrays.state_words(team.board.ranks), np.int64)

    def allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, *, leave: bool) -> bool:
        """Reduce within the node, and return True; or return False on all its ranks if it is left to MPI. Collective.

        Args:
            sendbuf: As in `MPI.Intracomm.Allreduce`.
            recvbuf: As in `MPI.Intracomm.Allreduce`.
            op: As in `MPI.Intracomm.Allreduce`.
            leave: Whether this rank wants it left to MPI.

        Raises:
            MismatchError: Other ranks of the node do not pass plain arrays; on all of them.
        """
        if self.left:
            return False
        number, board = self._agree.begin(), self._board
        if board.ranks == 1:
            return False
        task = None if leave or self._team.nodes > 1 else self._task(sendbuf, recvbuf, op)
        if task is None:
            return self._agree.plain(ALLREDUCE, number)
        digest, code, send, recv = task
        kernel = self._kernels.allreduce
        rest: tuple[Any, ...] = self._bytes, code, send, recv
        if recv.nbytes > self._kernels.FLAT and (shared := self._shared(digest, code, send, recv)) is not None:
            kernel = self._kernels.allreduce_shared
            digest, *rest_of_shared = shared
            rest = tuple(rest_of_shared)
        try:
            verdict = kernel(board.words, board.member, number, digest, self._state, *rest)
        except TypeError:  # not contiguous, or not of one type
            verdict = status.UNFIT
        if verdict == status.UNFIT:
            return self._agree.plain(ALLREDUCE, number)
        return verdict == status.DONE or self._end(ALLREDUCE, verdict, kernel, number, digest, *rest)

    def reduce_scatter(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, *, leave: bool) -> bool:
        """Do what `MPI.Intracomm.Reduce_scatter_block` does, for arrays that `scatters`; result as in `allreduce`."""
        task = None if leave else self._task(sendbuf, recvbuf, op)
        if task is not None:
            digest, code, send, recv = task
            if send is not recv and fit(send, recv, self._board.ranks):
                rest = self._sync.ARRIVED, self._bytes, code, send, recv
                return self._begin(_SCATTER, digest, self._kernels.reduce_scatter, *rest)
        return self._agree.plain(_SCATTER, self._agree.begin())

    def allgather(self, sendbuf: Any, recvbuf: Any, *, leave: bool) -> bool:
        """Do what `MPI.Intracomm.Allgather` does, for arrays that `gathers`; result as in `allreduce`."""
        task = None if leave else self._task(sendbuf, recvbuf, MPI.SUM)
        if task is not None:
            digest, _, send, recv = task
            part, ranks, me = recv.size // self._board.ranks, self._board.ranks, self._board.me
            in_place = send is recv
            if in_place:
                send = recv[me * part : (me + 1) * part]
            if part * ranks == recv.size and recv.flags.carray and (in_place or fit(recv, send, ranks)):
                rest = self._bytes, send.nbytes, send.view(np.uint8), recv.view(np.uint8)
                return self._begin(_GATHER, digest, self._kernels.allgather, self._sync.ARRIVED, *rest)
        return self._agree.plain(_GATHER, self._agree.begin())

    def _task(self, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> tuple[int, int, np.ndarray, np.ndarray] | None:
        """Return a digest, the kernels' code of ``op``, and both arrays as vectors; the same one in place.

        None if they are not C-contiguous arrays of a type and an operation of the kernels, as far as is seen here.
        """
        if type(recvbuf) is not np.ndarray or not isinstance(op, MPI.Op):
            return None
        kind, code = self._kinds.get(recvbuf.dtype), self._codes.get(op.handle)
        if kind is None or code is None:
            return None
        if recvbuf.ndim != 1:
            if not recvbuf.flags.c_contiguous:
                return None
            recvbuf = recvbuf.ravel()
        if sendbuf is MPI.IN_PLACE:
            sendbuf = recvbuf
        elif type(sendbuf) is not np.ndarray:
            return None
        elif sendbuf.ndim != 1:
            if not sendbuf.flags.c_contiguous:
                return None
            sendbuf = sendbuf.ravel()
        return -1 - _OPS * kind - code, code, sendbuf, recvbuf

    def _shared(self, digest: int, code: int, send: np.ndarray, recv: np.ndarray) -> tuple[Any, ...] | None:
        """Return the digest and what `allreduce_shared` takes, if the ranks of this node share both arrays' memory."""
        target = find_named(recv)
        source = target if send is recv or target is None else find_named(send)
        if source is None or target is None or not (self._team.owns(source) and self._team.owns(target)):
            return None
        where = source.offset(send), target.offset(recv), recv.nbytes
        if not fit(send, recv) or where[0] % recv.itemsize or where[1] % recv.itemsize:
            return None
        digest -= self._agree.digest(ALLREDUCE, (source.name, target.name)) // _DIGESTS * _DIGESTS
        return digest, self._words, self._kinds[recv.dtype], code, where, source.whole, target.whole

    def _begin(self, name: str, digest: int, kernel: Callable[..., int], *rest: Any) -> bool:
        """Run the kernel of a call within a node."""
        number, board = self._agree.begin(), self._board
        digest = self._named(name, digest)
        verdict = kernel(board.words, board.member, number, digest, self._state, *rest)
        return self._end(name, verdict, kernel, number, digest, *rest)

    @staticmethod
    def _named(name: str, digest: int) -> int:
        """Return the digest of `_task` for a call of the function ``name``."""
        return digest - _FUNCTIONS[name] * len(_TYPES) * _OPS

    def _end(self, name: str, verdict: int, kernel: Callable[..., int], number: int, digest: int, *rest: Any) -> bool:
        """Go on with a kernel that awaits other ranks; return whether it has done the call."""
        if verdict == status.PENDING:
            board, state = self._board, self._state

            def go() -> bool:
                nonlocal verdict
                verdict = kernel(board.words, board.member, number, digest, state, *rest)
                return verdict != status.PENDING

            board.wait(go, lambda: board.missing(number, int(state[0])), name)
        return verdict == status.DONE or self._agree.plain(name, number, verdict)

    def _step(self, number: int, phase: int, kernel: Callable[..., int], *rest: Any) -> int:
        """Run a kernel from a phase on, as a part of an Allreduce between nodes, and return the next phase."""
        board, state = self._board, self._state
        chunks = state[self._kernels.CHUNKS]
        verdict = kernel(board.words, board.member, number, 0, state, phase, *rest)
        self._end(ALLREDUCE, verdict, kernel, number, 0, phase, *rest)
        return phase + int(state[self._kernels.CHUNKS] - chunks)
