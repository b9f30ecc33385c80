"""Allreduce of plain arrays: within a node through its memory, between nodes by messages, where that beats MPI's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from sfb.network import Network
from sfb.profile import Profile, Use
from sfb.shared import find_named

if TYPE_CHECKING:
    from sfb.team import Team

__all__ = ["Arrays"]

# Bytes below which arrays between nodes are MPI's.
_FAR = 1 << 16

_CALL = "Allreduce"
# What stands for a call on all ranks is below 0: an operation, a type, and where arrays lie that are shared.
_OPS, _TYPES = 4, 4


class Arrays:
    """Allreduce of C-contiguous float32, float64, int32 and int64 arrays by the ranks of a team.

    Everything else, and what MPI does faster, is left to MPI. Every element is reduced once, in the order of the ranks
    of a node and then of nodes, so that all ranks get the same bits, in every run.

    Args:
        team: The ranks.
        profile: What returns their profile; collective.

    Attributes:
        far: Whether there are nodes that it works between.
    """

    def __init__(self, team: Team, profile: Callable[[], Profile]) -> None:
        from sfb.kernels import arrays, sync

        self._kernels = arrays
        self._team = team
        self._board = team.board
        self._agree = team.agree
        self._profile = profile
        self._codes = {
            op.handle: code
            for op, code in (
                (MPI.SUM, arrays.SUM),
                (MPI.PROD, arrays.PROD),
                (MPI.MAX, arrays.MAX),
                (MPI.MIN, arrays.MIN),
            )
        }
        self._reductions = {arrays.SUM: np.add, arrays.PROD: np.multiply, arrays.MAX: np.maximum, arrays.MIN: np.minimum}
        self._agreed, self._pending, self._arrived = sync.AGREED, sync.PENDING, sync.ARRIVED
        room = team.board.window
        self._windows = {
            np.dtype(name): (room.view(name), -1 - _OPS * i) for i, name in enumerate(("f4", "f8", "i4", "i8"))
        }
        self._bytes, self._words = room, room.view(np.int64)
        self._state = np.zeros(arrays.STATE, np.int64)
        self._network = Network(team) if Network.serves(team) else None
        self.far = self._network is not None
        self._faster: dict[int, bool] = {}

    def refuse(self, error: Exception) -> None:
        """Raise ``error`` on this rank, and on the others that it names this one."""
        self._agree.plain(_CALL, self._agree.begin(), error=error)

    def allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, *, leave: bool = False) -> bool:
        """Reduce within the node, and return True; or return False on all its ranks if it is left to MPI. Collective.

        Args:
            sendbuf: As of `MPI.Intracomm.Allreduce`.
            recvbuf: Likewise.
            op: Likewise.
            leave: This rank wants it left to MPI.

        Raises:
            MismatchError: Other ranks of the node do not pass plain arrays; on all of them.
        """
        number, board = self._agree.begin(), self._board
        if board.ranks == 1:
            return False
        window, digest = self._windows.get(getattr(recvbuf, "dtype", None), _NOTHING)
        code = self._codes.get(getattr(op, "handle", None))
        if window is not None and code is not None and not leave and self._team.nodes == 1:
            pair = _flat(sendbuf, recvbuf)
            if pair is not None:
                verdict = self._on_node(number, window, digest - code, code, *pair)
                if verdict == self._agreed:
                    return True
                if verdict != self._kernels.UNFIT:
                    return self._agree.plain(_CALL, number, verdict)
        return self._agree.plain(_CALL, number)

    def _on_node(
        self, number: int, window: np.ndarray, digest: int, code: int, send: np.ndarray, recv: np.ndarray
    ) -> int:
        """Reduce among the ranks of the node, and return the verdict."""
        board = self._board
        kernel = self._kernels.allreduce
        rest: tuple[Any, ...] = window, code, send, recv
        if recv.nbytes > self._kernels.FLAT and (there := self._shared(digest, send, recv)) is not None:
            kernel = self._kernels.allreduce_shared
            digest, places, source, target = there
            rest = window, self._words, code, places, source, target
        try:
            verdict = kernel(board.words, board.place, number, digest, self._state, *rest)
        except TypeError:  # not contiguous, or not of one type
            return self._kernels.UNFIT
        return verdict if verdict != self._pending else self._wait(number, kernel, digest, *rest)

    def _wait(self, number: int, kernel: Callable[..., int], digest: int, *rest: Any) -> int:
        """Go on with a kernel that awaits other ranks."""
        board, state = self._board, self._state
        verdict = self._pending

        def go() -> bool:
            nonlocal verdict
            verdict = kernel(board.words, board.place, number, digest, state, *rest)
            return verdict != self._pending

        board.wait(go, lambda: board.missing(number, int(state[0])), _CALL)
        return verdict

    def _shared(
        self, digest: int, send: np.ndarray, recv: np.ndarray
    ) -> tuple[int, tuple[int, int, int], np.ndarray, np.ndarray] | None:
        """Return what `allreduce_shared` takes if both arrays lie in memory that the ranks of this node share."""
        target = find_named(recv)
        source = target if send is recv or target is None else find_named(send)
        if source is None or target is None or not (self._team.owns(source) and self._team.owns(target)):
            return None
        size = recv.itemsize
        places = source.offset(send), target.offset(recv)
        if not _fit(send, recv) or places[0] % size or places[1] % size:
            return None
        where = self._agree.digest(_CALL, (source.name, target.name)) // (_OPS * _TYPES) * (_OPS * _TYPES)
        views = (block.whole[: block.whole.size // size * size].view(recv.dtype) for block in (source, target))
        return digest - where, (places[0] // size, places[1] // size, recv.size), *views  # type: ignore[return-value]

    def takes(self, recvbuf: Any) -> bool:
        """Return whether this is for `allreduce_everywhere`; the same on all ranks, and maybe collective."""
        nbytes = _nbytes(recvbuf)
        if nbytes < _FAR:
            return False
        faster = self._faster.get(nbytes)
        if faster is None:
            if len(self._faster) >= _KNOWN:
                self._faster.clear()
            faster = self._faster[nbytes] = self._is_faster(nbytes)
        return faster

    def _is_faster(self, nbytes: int) -> bool:
        profile = self._profile()
        if "arrays" not in profile.tables or "allreduce" not in profile.tables:
            return False
        ours, mpi = (profile.seconds(Use(kind, nbytes), profile.place) for kind in ("arrays", "allreduce"))
        return ours < mpi

    def allreduce_everywhere(self, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> bool:
        """Reduce among the ranks of all nodes; otherwise as `allreduce`, but all ranks agree."""
        assert self._network is not None
        number = self._agree.begin()
        window, digest = self._windows.get(getattr(recvbuf, "dtype", None), _NOTHING)
        code = self._codes.get(getattr(op, "handle", None))
        pair = _flat(sendbuf, recvbuf) if window is not None and code is not None else None
        if pair is None or not _fit(*pair):
            digest = 0
        else:
            digest -= code
            try:
                self._network.reserve()
            except MemoryError:
                digest = 0
        if not self._agree.plain_everywhere(_CALL, number, digest, _nbytes(recvbuf)):
            return False
        assert pair is not None
        assert window is not None
        self._network.allreduce(number, self._reductions[code], self._blocks(number, window, code, *pair))
        return True

    def _blocks(
        self, number: int, window: np.ndarray, code: int, send: np.ndarray, recv: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Callable[[], None]]]:
        """Yield what `Network.allreduce` takes: this rank's part of each block, of which the node has formed the sum."""
        assert self._network is not None
        ranks, me = self._board.ranks, self._board.me
        most = self._network.block // recv.itemsize * ranks
        count = ceil(recv.size / most)
        phase = self._arrived + 1
        for i in range(count):
            block = slice(recv.size * i // count, recv.size * (i + 1) // count)
            given, taken = send[block], recv[block]
            if ranks == 1:
                yield given, taken, _nothing
                continue
            part = ceil(taken.size / ranks)
            mine = taken[me * part : (me + 1) * part]
            phase = self._step(number, phase, self._kernels.reduce_scatter, window, code, given, mine)

            def spread(mine: np.ndarray = mine, taken: np.ndarray = taken, part: int = part) -> None:
                nonlocal phase
                rest = part * mine.itemsize, mine.view(np.uint8), taken.view(np.uint8)
                phase = self._step(number, phase, self._kernels.spread, self._bytes, -1, *rest)

            yield mine, mine, spread

    def _step(self, number: int, phase: int, kernel: Callable[..., int], *rest: Any) -> int:
        """Run a kernel from a phase on, and return the next phase."""
        board, state = self._board, self._state
        before = state[2]
        if kernel(board.words, board.place, number, 0, state, phase, *rest) == self._pending:
            self._wait(number, kernel, 0, phase, *rest)
        return phase + int(state[2] - before)


_NOTHING = None, 0
# Sizes for which it is remembered whether MPI is faster.
_KNOWN = 4096


def _nothing() -> None:
    pass


def _flat(sendbuf: Any, recvbuf: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both as vectors, the same twice to reduce in place; None if they are not C-contiguous arrays."""
    if type(recvbuf) is not np.ndarray:
        return None
    recv = recvbuf
    if recv.ndim != 1:
        if not recv.flags.c_contiguous:
            return None
        recv = recv.ravel()
    if sendbuf is MPI.IN_PLACE:
        return recv, recv
    if type(sendbuf) is not np.ndarray:
        return None
    if sendbuf.ndim == 1:
        return sendbuf, recv
    return (sendbuf.ravel(), recv) if sendbuf.flags.c_contiguous else None


def _fit(send: np.ndarray, recv: np.ndarray) -> bool:
    """Return whether ``send`` can be reduced into ``recv``."""
    if send is recv:
        return recv.flags.carray
    return (
        send.dtype == recv.dtype
        and send.size == recv.size
        and recv.flags.carray
        and send.flags.c_contiguous
        and send.flags.aligned
        and not np.may_share_memory(send, recv)
    )


def _nbytes(buffer: Any) -> int:
    """Return the bytes that a buffer of mpi4py describes, the same on all ranks of a call; 0 if they cannot be told."""
    if isinstance(buffer, np.ndarray):
        return buffer.nbytes
    try:
        if not isinstance(buffer, (list, tuple)):
            return MPI.buffer.frombuffer(buffer, readonly=True).nbytes
        data, *rest = buffer
        kind = rest.pop() if rest and isinstance(rest[-1], (MPI.Datatype, str)) else None
        if isinstance(kind, str):
            kind = MPI.Datatype.fromcode(kind)
        if not rest or rest[0] is None:
            whole = _nbytes(data)
            return whole if kind is None else whole // kind.extent * kind.size
        count = rest[0][0] if isinstance(rest[0], (list, tuple)) else rest[0]
        return int(count) * (np.asarray(data).itemsize if kind is None else kind.size)
    except Exception:  # MPI will say what is wrong with it
        return 0
