"""A collective call of plain arrays on one rank, and what ranks compare of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.buffers import ANY, BYTES, UNKNOWN, Message, kind_name, read
from sfb.runtime.agreement import Agreement, Proposal

__all__ = [
    "ALLREDUCE",
    "FUNCTIONS",
    "GATHER",
    "IALLREDUCE",
    "SCATTER",
    "PlainCall",
    "PlainProposal",
    "alike",
    "left_digest",
    "plain_digest",
    "shared_digest",
]

ALLREDUCE, IALLREDUCE, SCATTER, GATHER = "Allreduce", "Iallreduce", "Reduce_scatter_block", "Allgather"
FUNCTIONS = {ALLREDUCE: 0, SCATTER: 1, GATHER: 2, IALLREDUCE: 3}
# The first four are those of the kernels, in the order of their codes.
_OPS = ("SUM", "PROD", "MAX", "MIN", "LAND", "BAND", "LOR", "BOR", "LXOR", "BXOR", "MAXLOC", "MINLOC", "REPLACE")
_CODES = {getattr(MPI, name).handle: code for code, name in enumerate(_OPS)}
_KERNEL_OPS = 4
_USERS = len(_OPS)  # of the user: ranks cannot compare them

_KINDS, _ALL_OPS = ANY + 1, _USERS + 1
# Digests of plain arrays lie below `sfb.kernels.header.PLAIN`. They hold the function, the type, the operation, and
# whether this rank leaves the call to MPI; and in front of these a hash of where shared arrays lie, 0 for others.
_BASES = len(FUNCTIONS) * _KINDS * _ALL_OPS * 2


def plain_digest(name: str, kind: int, code: int, *, left: bool = False) -> int:
    """Return the digest of a call of a function with elements and an operation of these numbers."""
    return -1 - (((FUNCTIONS[name] * _KINDS + kind) * _ALL_OPS + code) * 2 + left)


def left_digest(digest: int) -> int:
    """Return the digest of the same call, left to MPI."""
    return digest - 1


def shared_digest(digest: int, names: tuple[str, str]) -> int:
    """Return the digest of a call whose arrays lie in memory of these names that the ranks share."""
    return digest - Agreement.digest(ALLREDUCE, names) // _BASES * _BASES


def alike(digests: np.ndarray, sizes: np.ndarray) -> bool:
    """Return whether calls of these digests and bytes go together, though some may be left to MPI."""
    calls = (-1 - digests) % _BASES // 2
    rest, ops = np.divmod(calls, _ALL_OPS)
    functions, kinds = np.divmod(rest, _KINDS)
    several = (functions, ops, kinds[kinds != ANY], sizes[sizes != UNKNOWN])
    return all(values.size == 0 or bool((values == values[0]).all()) for values in several)


class PlainCall:
    """A collective call of plain arrays, as mpi4py reads it; nothing is sent.

    Memory that is sent and received at once counts as `MPI.IN_PLACE`.

    Args:
        name: The function.
        sendbuf: The user's argument, right or wrong, like the following.
        recvbuf: The user's argument.
        op: The user's argument.
        ranks: The number of ranks.
        rank: This rank.

    Attributes:
        name: The function.
        error: What is wrong with the arguments; None if they are right.
        arguments: ``sendbuf`` and ``recvbuf`` for mpi4py.
        nbytes: Bytes that have to be equal on all ranks: of the result, or of a rank's part; `UNKNOWN` if not known.
        kind: The type of elements.
        code: The number of the operation.
        send: The elements sent, for kernels; ``recv`` itself in place; None if kernels do not take them.
        recv: The elements received, likewise.
    """

    def __init__(self, name: str, sendbuf: Any, recvbuf: Any, op: Any, ranks: int, rank: int) -> None:
        self.name = name
        self.arguments = sendbuf, recvbuf
        self.error: Exception | None = None
        self.nbytes, self.kind, self.code = UNKNOWN, ANY, _USERS
        self.send: np.ndarray | None = None
        self.recv: np.ndarray | None = None
        try:
            self._read_op(op)
            self._read(sendbuf, recvbuf, ranks, rank)
        except Exception as caught:  # the other ranks wait to hear of it
            self.error = caught

    def digest(self, *, left: bool) -> int:
        """Return the digest of the call; ``left`` to MPI or not."""
        return plain_digest(self.name, self.kind, self.code, left=left)

    def describe(self) -> str:
        """Describe what this rank passed, for messages."""
        size = "a plain buffer" if self.nbytes == UNKNOWN else f"a plain buffer of {self.nbytes} bytes"
        op = "" if self.name == GATHER else f", by MPI.{_OPS[self.code]}" if self.code < _USERS else ", by another op"
        return f"{size}, {kind_name(self.kind)}{op}"

    @property
    def task(self) -> tuple[int, int, np.ndarray, np.ndarray] | None:
        """The digest, the operation and both arrays, if kernels take them."""
        if self.error is not None or self.send is None or self.recv is None or self.code >= _KERNEL_OPS:
            return None
        return self.digest(left=False), self.code, self.send, self.recv

    def _read_op(self, op: Any) -> None:
        if self.name == GATHER:
            self.code = 0
            return
        if not isinstance(op, MPI.Op):
            raise TypeError(f"op must be an MPI.Op, got {type(op).__name__}")
        if op == MPI.OP_NULL:
            raise MPI.Exception(MPI.ERR_OP)
        self.code = _CODES.get(op.handle, _USERS)

    def _read(self, sendbuf: Any, recvbuf: Any, ranks: int, rank: int) -> None:
        in_place = sendbuf is MPI.IN_PLACE or sendbuf is None  # mpi4py takes both
        divided = self.name == GATHER or (self.name == SCATTER and in_place)
        recv = read(recvbuf, ranks if divided else 1, writeable=True)
        send = recv if in_place else read(sendbuf, ranks if self.name == SCATTER else 1)
        self.nbytes, self.kind = recv.nbytes, send.kind if recv.kind == ANY else recv.kind
        if recv.nbytes == UNKNOWN:
            self.nbytes = send.nbytes
        if self.name == GATHER and self.kind == BYTES:  # bytes stand for anything
            self.kind = ANY
        if not in_place:
            self._compare(send, recv)
            in_place = self._is_in_place(send, recv, rank)
            if in_place and self.name == SCATTER:
                read(sendbuf, ranks, writeable=True)
                self.arguments = MPI.IN_PLACE, sendbuf
            elif in_place:
                self.arguments = MPI.IN_PLACE, recvbuf
        self.recv = recv.vector
        self.send = recv.vector if in_place else send.vector

    def _compare(self, send: Message, recv: Message) -> None:
        """Raise ValueError if what is sent does not fit what is received."""
        if UNKNOWN in (send.nbytes, recv.nbytes):
            return
        if self.name == GATHER:
            kinds = {send.kind, recv.kind}
            if len(kinds) > 1 and kinds.isdisjoint((ANY, BYTES)):
                raise ValueError("mismatch in send and receive MPI datatypes")
            if send.nbytes != recv.nbytes:
                raise ValueError(f"mismatch in send bytes {send.nbytes} and receive bytes {recv.nbytes} of a rank")
        elif send.datatype != recv.datatype:
            raise ValueError("mismatch in send and receive MPI datatypes")
        elif send.entries != recv.entries:
            raise ValueError(f"mismatch in send count {send.entries} and receive count {recv.entries}")

    def _is_in_place(self, send: Message, recv: Message, rank: int) -> bool:
        """Return whether both are the same memory; raise ValueError if they overlap otherwise."""
        if send.begin == send.end or recv.begin == recv.end:
            return False
        if send.begin == recv.begin + (rank * recv.nbytes if self.name == GATHER else 0):
            return True
        if ANY not in (send.kind, recv.kind) and send.begin < recv.end and recv.begin < send.end:
            raise ValueError("sendbuf and recvbuf overlap: pass MPI.IN_PLACE, or copy one of them")
        return False


class PlainProposal(Proposal):
    """The proposal of a call of plain arrays.

    Args:
        call: The call.
        number: The number of the call.
        digest: The digest that this rank posts, or has posted.
        blocking: Whether the caller is about to wait.

    Attributes:
        plain: The call.
    """

    own_error = True

    def __init__(self, call: PlainCall, number: int, digest: int, *, blocking: bool = True) -> None:
        super().__init__(call.name, blocking=blocking)
        self.number, self.digest, self.size, self.error = number, digest, call.nbytes, call.error
        self.plain = call

    def describe(self) -> str:
        """Describe what this rank passed, for messages."""
        return self.plain.describe()
