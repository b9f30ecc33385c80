"""Collectives of plain arrays within a node: single calls of kernels, through memory that its ranks share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from mpi4py import MPI

from sfb.arrays.buffers import KERNEL_TYPES, array_of, fit
from sfb.arrays.call import (
    ALLREDUCE,
    FUNCTIONS,
    GATHER,
    SCATTER,
    PlainCall,
    PlainProposal,
    alike,
    left_digest,
    plain_digest,
    shared_digest,
)
from sfb.kernels import status
from sfb.runtime.team import Team
from sfb.runtime.windows import find_named

__all__ = ["Arguments", "NodeArrays", "Task"]

# What is sent, and what receives.
Arguments: TypeAlias = "tuple[Any, Any]"
# What the kernels take: a digest, the code of the operation, and both arrays as vectors; the same one in place.
Task: TypeAlias = "tuple[int, int, np.ndarray, np.ndarray]"

# Bytes of all parts up to which `MPI.Intracomm.Allgather` is not left to MPI.
_MOST_GATHERED = 1 << 20


class NodeArrays:
    """Collectives of C-contiguous float32, float64, int32 and int64 arrays by the ranks of a node.

    Everything else is left to MPI, once the ranks of a node have compared what they pass. Every element is reduced
    once, in the order of ranks, so that all ranks get the same bits, in every run.

    The collectives return what MPI is to be given, or None if they have done the call. They raise on all ranks of the
    node `MismatchError` if the calls do not go together, and what a rank finds wrong with its own arguments.

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
        self._kinds = {np.dtype(name): kind for kind, name in enumerate(KERNEL_TYPES)}
        self._digests = {
            name: {key: plain_digest(name, *key) for key in product(range(len(KERNEL_TYPES)), ops)}
            for name in FUNCTIONS
        }
        self._bytes = team.board.window
        self._words = self._bytes.view(np.int64)
        self._state = np.zeros(arrays.state_words(team.board.ranks), np.int64)
        self._broken: BaseException | None = None

    @property
    def position(self) -> tuple[str, int]:
        """The label of the communicator, and the number of its last call."""
        return self._team.label, self._agree.number

    def allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, *, leave: bool) -> Arguments | None:
        """Do what `MPI.Intracomm.Allreduce` does, within the node; collective.

        Args:
            sendbuf: As in `MPI.Intracomm.Allreduce`.
            recvbuf: As in `MPI.Intracomm.Allreduce`.
            op: As in `MPI.Intracomm.Allreduce`.
            leave: Whether this rank wants it left to MPI.
        """
        if self.left:
            return sendbuf, recvbuf
        number = self._agree.begin()
        if self._board.ranks == 1:
            return sendbuf, recvbuf
        if leave or self._team.nodes > 1:
            return self._leave(ALLREDUCE, number, sendbuf, recvbuf, op)
        task, call = self._task(ALLREDUCE, sendbuf, recvbuf, op), None
        if task is None:
            call = self._read(ALLREDUCE, sendbuf, recvbuf, op)
            task = call.task
        if task is None:
            return self._leave(ALLREDUCE, number, sendbuf, recvbuf, op, call)
        digest, code, send, recv = task
        kernel = self._kernels.allreduce
        rest: tuple[Any, ...] = self._bytes, code, send, recv
        if recv.nbytes > self._kernels.FLAT and (shared := self._shared(digest, code, send, recv)) is not None:
            kernel = self._kernels.allreduce_shared
            digest, *rest_of_shared = shared
            rest = tuple(rest_of_shared)
        verdict = self._run(ALLREDUCE, kernel, number, digest, *rest)
        return None if verdict is None else self._end(ALLREDUCE, verdict, number, digest, sendbuf, recvbuf, op)

    def reduce_scatter(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, *, leave: bool) -> Arguments | None:
        """Do what `MPI.Intracomm.Reduce_scatter_block` does, within the node; as `allreduce`."""
        if self.left:
            return sendbuf, recvbuf
        number, ranks = self._agree.begin(), self._board.ranks
        if ranks == 1:
            return sendbuf, recvbuf
        call = None
        if not leave and self._team.nodes == 1:
            task = self._task(SCATTER, sendbuf, recvbuf, op)
            if task is None:
                call = self._read(SCATTER, sendbuf, recvbuf, op)
                task = call.task
            if task is not None:
                digest, code, send, recv = task
                if send is not recv and send.size % ranks == 0:
                    kernel, rest = self._kernels.reduce_scatter, (self._sync.ARRIVED, self._bytes, code, send, recv)
                    verdict = self._run(SCATTER, kernel, number, digest, *rest)
                    return (
                        None if verdict is None else self._end(SCATTER, verdict, number, digest, sendbuf, recvbuf, op)
                    )
        return self._leave(SCATTER, number, sendbuf, recvbuf, op, call)

    def allgather(self, sendbuf: Any, recvbuf: Any, *, leave: bool) -> Arguments | None:
        """Do what `MPI.Intracomm.Allgather` does, within the node; as `allreduce`."""
        if self.left:
            return sendbuf, recvbuf
        op = MPI.SUM
        number, ranks = self._agree.begin(), self._board.ranks
        if ranks == 1:
            return sendbuf, recvbuf
        call = None
        if not leave and self._team.nodes == 1:
            task = self._task(GATHER, sendbuf, recvbuf, op)
            if task is None:
                call = self._read(GATHER, sendbuf, recvbuf, op)
                task = call.task
            if task is not None:
                digest, _, send, recv = task
                if recv.nbytes <= _MOST_GATHERED and recv.size % ranks == 0:
                    kernel, rest = self._kernels.allgather, (self._sync.ARRIVED, self._bytes, send, recv)
                    verdict = self._run(GATHER, kernel, number, digest, *rest)
                    return None if verdict is None else self._end(GATHER, verdict, number, digest, sendbuf, recvbuf, op)
        return self._leave(GATHER, number, sendbuf, recvbuf, op, call)

    def _task(self, name: str, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> Task | None:
        """Return what the kernels take, None if these are no arrays of NumPy that they take, as far as is seen here."""
        if type(recvbuf) is not np.ndarray:
            recvbuf = array_of(recvbuf)
        if recvbuf is None or not isinstance(op, MPI.Op):
            return None
        kind, code = self._kinds.get(recvbuf.dtype), self._codes.get(op.handle)
        if kind is None or code is None:
            return None
        given = recvbuf
        if recvbuf.ndim != 1:
            if not recvbuf.flags.c_contiguous:
                return None
            recvbuf = recvbuf.reshape(-1)
        if sendbuf is MPI.IN_PLACE:
            if name == SCATTER:
                return None
            sendbuf = recvbuf
        else:
            if type(sendbuf) is not np.ndarray:
                sendbuf = array_of(sendbuf)
            if sendbuf is None or (sendbuf is given and name != ALLREDUCE):
                return None
            if sendbuf.ndim != 1:
                if not sendbuf.flags.c_contiguous:
                    return None
                sendbuf = sendbuf.reshape(-1)
        return self._digests[name][kind, code], code, sendbuf, recvbuf

    def _right(self, name: str, send: np.ndarray, recv: np.ndarray) -> bool:
        """Return whether MPI and the kernels take these arrays."""
        ranks = self._team.size
        if name == GATHER:
            whole = recv.flags.carray and recv.size % ranks == 0
            return whole and (send is recv or fit(recv, send, ranks))
        if name == SCATTER:
            return send is not recv and fit(send, recv, ranks)
        return fit(send, recv)

    def _read(self, name: str, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> PlainCall:
        """Return a call of any buffers, as mpi4py reads them."""
        call = PlainCall(name, sendbuf, recvbuf, op, self._team.size, self._team.rank)
        if self._broken is not None:
            kind = type(self._broken).__name__
            call.error = RuntimeError(
                f"the communicator is broken, since {kind} ended an earlier call: free it and use it anew"
            )
        return call

    def _leave(
        self, name: str, number: int, sendbuf: Any, recvbuf: Any, op: MPI.Op, call: PlainCall | None = None
    ) -> Arguments:
        """Let the ranks of the node compare a call, and leave it to MPI.

        Args:
            name: The function.
            number: The number of the call.
            sendbuf: The user's argument, right or wrong, like the following.
            recvbuf: The user's argument.
            op: The user's argument.
            call: The call, if it has been read.
        """
        task = self._task(name, sendbuf, recvbuf, op) if call is None else None
        if task is not None and self._right(name, task[2], task[3]):
            digest = left_digest(task[0])
            nbytes = task[3].nbytes // (self._team.size if name == GATHER else 1)
            if self._board.meet(number, digest, nbytes, wait=True) == status.AGREED:
                return sendbuf, recvbuf
            proposal = PlainProposal(self._read(name, sendbuf, recvbuf, op), number, digest)
            proposal.verdict = self._board.look(number, wait=True)
        else:
            call = call or self._read(name, sendbuf, recvbuf, op)
            proposal = PlainProposal(call, number, call.digest(left=True))
            self._agree.post(proposal)
        self._agree.plain(proposal, alike)
        return proposal.plain.arguments

    def _run(self, name: str, kernel: Callable[..., int], number: int, digest: int, *rest: Any) -> int | None:
        """Run a kernel, and return None, or the verdict by which it has not done the call."""
        board = self._board
        try:
            verdict = kernel(board.words, board.member, number, digest, self._state, *rest)
        except TypeError:  # not contiguous, or not of one type
            return status.UNFIT
        if verdict == status.PENDING:
            verdict = self._wait(name, kernel, number, digest, *rest)
        return None if verdict == status.DONE else verdict

    def _end(
        self, name: str, verdict: int, number: int, digest: int, sendbuf: Any, recvbuf: Any, op: MPI.Op
    ) -> Arguments:
        """End a call that a kernel has not done, by its verdict."""
        if verdict == status.UNFIT:  # nobody has been told
            return self._leave(name, number, sendbuf, recvbuf, op)
        call = self._read(name, sendbuf, recvbuf, op)
        proposal = PlainProposal(call, number, digest)
        proposal.verdict = verdict
        self._agree.plain(proposal, alike)
        return call.arguments

    def _shared(self, digest: int, code: int, send: np.ndarray, recv: np.ndarray) -> tuple[Any, ...] | None:
        """Return the digest and what `allreduce_shared` takes, if the ranks of this node share both arrays' memory."""
        target = find_named(recv)
        source = target if send is recv or target is None else find_named(send)
        if source is None or target is None or not (self._team.owns(source) and self._team.owns(target)):
            return None
        where = source.offset(send), target.offset(recv), recv.nbytes
        if not fit(send, recv) or where[0] % recv.itemsize or where[1] % recv.itemsize:
            return None
        digest = shared_digest(digest, (source.name, target.name))
        return digest, self._words, self._kinds[recv.dtype], code, where, source.whole, target.whole

    def _wait(self, name: str, kernel: Callable[..., int], number: int, digest: int, *rest: Any) -> int:
        """Call a kernel until it has ended, and return its verdict."""
        board, state = self._board, self._state
        verdict = status.PENDING

        def go() -> bool:
            nonlocal verdict
            verdict = kernel(board.words, board.member, number, digest, state, *rest)
            return verdict != status.PENDING

        try:
            board.wait(go, lambda: board.missing(number, int(state[0])), name)
        except BaseException as error:  # an interrupt: other ranks are in the midst of the call
            self._broken = error
            self._kinds = {}  # so that every later call is read, and says so
            raise
        return verdict

    def _step(self, number: int, phase: int, kernel: Callable[..., int], *rest: Any) -> int:
        """Run a kernel from a phase on, as a part of an Allreduce between nodes, and return the next phase."""
        chunks = self._state[self._kernels.CHUNKS]
        self._wait(ALLREDUCE, kernel, number, 0, phase, *rest)
        return phase + int(self._state[self._kernels.CHUNKS] - chunks)
