"""Collectives of plain arrays: within a node by its memory, between nodes by messages, where that beats MPI's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.internode import Network
from sfb.kernels import status
from sfb.kernels.header import PLAIN
from sfb.runtime.windows import find_named
from sfb.tuning.profile import Profile, Use
from sfb.tuning.trial import TIMED, Trial

if TYPE_CHECKING:
    from sfb.runtime.team import Team

__all__ = ["SETTLED", "Arrays", "gathers", "scatters"]

# Bytes from which arrays between nodes are not simply MPI's, and by how much the time of MPI must be longer.
_FAR, _GAIN = 1 << 20, 1.1
# Sizes for which it is remembered who is faster, and the calls in which that is found out.
_KNOWN, SETTLED = 4096, 2 * TIMED + 1
# The same for a rank's part in other collectives, and the bytes of all parts up to which they are gathered.
_SCATTERED, _GATHERED, _MOST_GATHERED = 1 << 12, 1 << 15, 1 << 20

# Who is timed.
_OURS, _MPI = "arrays", "mpi"

_ALLREDUCE, _SCATTER, _GATHER = "Allreduce", "Reduce_scatter_block", "Allgather"
# What has to be equal on all ranks of a call is told by a number below `PLAIN`: that of its name, the type, the
# operation, and where arrays lie that are shared.
_NAMES = {_ALLREDUCE: 0, _SCATTER: 1, _GATHER: 2}
_TYPES = ("f4", "f8", "i4", "i8")
_OPS = 4
_DIGESTS = len(_NAMES) * len(_TYPES) * _OPS


class Arrays:
    """Collectives of C-contiguous float32, float64, int32 and int64 arrays by the ranks of a team.

    Everything else, and what MPI does faster, is left to MPI. Every element is reduced once, in the order of the ranks
    of a node and then of nodes, so that all ranks get the same bits, in every run.

    Args:
        team: The ranks.
        profile: What returns their profile if it was measured before, or is not to be; collective.

    Attributes:
        far: Whether there are nodes that it works between.
        left: Bytes below which arrays are MPI's, and no rank asks another about them: no two of them share memory.
    """

    def __init__(self, team: Team, profile: Callable[[], Profile | None]) -> None:
        from sfb.kernels import arrays, sync

        self._kernels, self._sync = arrays, sync

        self._team = team
        self._board = team.board
        self._agree = team.agree
        self._profile = profile
        ops = {arrays.SUM: MPI.SUM, arrays.PROD: MPI.PROD, arrays.MAX: MPI.MAX, arrays.MIN: MPI.MIN}
        self._codes = {op.handle: code for code, op in ops.items()}
        self._reductions = dict(zip(ops, (np.add, np.multiply, np.maximum, np.minimum), strict=True))
        self._bytes = team.board.window
        self._words = self._bytes.view(np.int64)
        self._windows = {np.dtype(name): (self._bytes.view(name), -1 - _OPS * i) for i, name in enumerate(_TYPES)}
        self._state = np.zeros(arrays.state_words(team.board.ranks), np.int64)
        self._network = Network(team) if Network.serves(team) else None
        self.far = self._network is not None
        self.left = _FAR if team.nodes == team.size else 0
        self._choices: dict[int, Trial | bool] = {}

    def refuse(self, error: Exception) -> None:
        """Raise ``error`` on this rank, and on the others that it names this one."""
        self._agree.plain(_ALLREDUCE, self._agree.begin(), error=error)

    def allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, *, leave: bool) -> bool:
        """Reduce within the node, and return True; or return False on all its ranks if it is left to MPI. Collective.

        Args:
            sendbuf: As of `MPI.Intracomm.Allreduce`.
            recvbuf: Likewise.
            op: Likewise.
            leave: This rank wants it left to MPI.

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
            return self._agree.plain(_ALLREDUCE, number)
        digest, code, window, send, recv = task
        kernel = self._kernels.allreduce
        rest: tuple[Any, ...] = window, code, send, recv
        if recv.nbytes > self._kernels.FLAT and (there := self._shared(digest, send, recv)) is not None:
            kernel = self._kernels.allreduce_shared
            digest, places, source, target = there
            rest = window, self._words, code, places, source, target
        try:
            verdict = kernel(board.words, board.place, number, digest, self._state, *rest)
        except TypeError:  # not contiguous, or not of one type
            verdict = status.UNFIT
        if verdict == status.UNFIT:
            return self._agree.plain(_ALLREDUCE, number)
        return verdict == status.DONE or self._end(_ALLREDUCE, verdict, kernel, number, digest, *rest)

    def reduce_scatter(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, *, leave: bool) -> bool:
        """Do what `MPI.Intracomm.Reduce_scatter_block` does, of arrays that `scatters`; otherwise as `allreduce`."""
        task = None if leave else self._task(sendbuf, recvbuf, op)
        if task is not None:
            digest, code, window, send, recv = task
            if send is not recv and _fit(send, recv, self._board.ranks):
                rest = self._sync.ARRIVED, window, code, send, recv
                return self._begin(_SCATTER, digest, self._kernels.reduce_scatter, *rest)
        return self._agree.plain(_SCATTER, self._agree.begin())

    def allgather(self, sendbuf: Any, recvbuf: Any, *, leave: bool) -> bool:
        """Do what `MPI.Intracomm.Allgather` does, of arrays that `gathers`; otherwise as `allreduce`."""
        task = None if leave else self._task(sendbuf, recvbuf, MPI.SUM)
        if task is not None:
            digest, _, _, send, recv = task
            part, ranks, me = recv.size // self._board.ranks, self._board.ranks, self._board.me
            in_place = send is recv
            if in_place:
                send = recv[me * part : (me + 1) * part]
            if part * ranks == recv.size and recv.flags.carray and (in_place or _fit(recv, send, ranks)):
                rest = self._bytes, send.nbytes, send.view(np.uint8), recv.view(np.uint8)
                return self._begin(_GATHER, digest, self._kernels.spread, self._sync.ARRIVED, *rest)
        return self._agree.plain(_GATHER, self._agree.begin())

    def _task(
        self, sendbuf: Any, recvbuf: Any, op: MPI.Op
    ) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray] | None:
        """Return a digest, the kernels' code of ``op``, the window, and both arrays as vectors; the same one in place.

        None if they are not C-contiguous arrays of a type and an operation of the kernels, as far as is seen here.
        """
        if type(recvbuf) is not np.ndarray or not isinstance(op, MPI.Op):
            return None
        known, code = self._windows.get(recvbuf.dtype), self._codes.get(op.handle)
        if known is None or code is None:
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
        return known[1] - code, code, known[0], sendbuf, recvbuf

    def _begin(self, name: str, digest: int, kernel: Callable[..., int], *rest: Any) -> bool:
        """Run the kernel of a call within a node."""
        number, board = self._agree.begin(), self._board
        digest -= _NAMES[name] * len(_TYPES) * _OPS
        verdict = kernel(board.words, board.place, number, digest, self._state, *rest)
        return self._end(name, verdict, kernel, number, digest, *rest)

    def _end(self, name: str, verdict: int, kernel: Callable[..., int], number: int, digest: int, *rest: Any) -> bool:
        """Go on with a kernel that awaits other ranks; return whether it has done the call."""
        if verdict == status.PENDING:
            board, state = self._board, self._state

            def go() -> bool:
                nonlocal verdict
                verdict = kernel(board.words, board.place, number, digest, state, *rest)
                return verdict != status.PENDING

            board.wait(go, lambda: board.missing(number, int(state[0])), name)
        return verdict == status.DONE or self._agree.plain(name, number, verdict)

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
        where = self._agree.digest(_ALLREDUCE, (source.name, target.name)) // _DIGESTS * _DIGESTS
        views = [block.whole[: len(block.whole) // size * size].view(recv.dtype) for block in (source, target)]
        return digest - where, (places[0] // size, places[1] // size, recv.size), views[0], views[1]

    def takes(self, recvbuf: Any) -> bool:
        """Return whether this is for `allreduce_everywhere`; the same on all ranks, and maybe collective."""
        nbytes = recvbuf.nbytes if type(recvbuf) is np.ndarray else _nbytes(recvbuf)
        return nbytes >= _FAR and self._choice(nbytes) is not False

    def _choice(self, nbytes: int) -> Trial | bool:
        """Return whether arrays of so many bytes are not left to MPI between nodes, or the trial that is to tell."""
        choice = self._choices.get(nbytes)
        if choice is None:
            profile = self._profile()
            if profile is None or ("arrays" not in profile.tables and profile.measured):
                choice = Trial((_OURS, _MPI), far=True)
            elif profile.measured:
                ours, mpi = (profile.seconds(Use(kind, nbytes), profile.place) for kind in ("arrays", "allreduce"))
                choice = _GAIN * ours < mpi
            else:
                choice = False
            if len(self._choices) >= _KNOWN:
                self._choices.clear()
            self._choices[nbytes] = choice
        elif isinstance(choice, Trial) and choice.over:
            # The median, not the least: messages of many blocks are now and then much slower than at best.
            ours, mpi = (median(choice.seconds[name][1:]) for name in (_OURS, _MPI))
            choice = self._choices[nbytes] = _GAIN * ours < mpi
        return choice

    def allreduce_everywhere(
        self, sendbuf: Any, recvbuf: Any, op: MPI.Op, mpi: Callable[[], None], *, always: bool = False
    ) -> None:
        """Reduce among the ranks of all nodes, or let MPI do it by calling ``mpi``; otherwise as `allreduce`.

        ``always``, even where MPI is faster.
        """
        assert self._network is not None
        number, nbytes = self._agree.begin(), _nbytes(recvbuf)
        task = self._task(sendbuf, recvbuf, op)
        if task is not None:
            try:
                self._network.reserve()
            except MemoryError:
                task = None
        digest = PLAIN if task is None or not _fit(*task[3:]) else task[0]
        if not self._agree.plain_everywhere(_ALLREDUCE, number, digest, nbytes):
            mpi()
            return
        assert task is not None
        _, code, window, send, recv = task
        choice = always or self._choice(nbytes)
        name = choice.next if isinstance(choice, Trial) else _OURS if choice else _MPI
        began = perf_counter()
        if name == _OURS:
            self._network.allreduce(number, self._reductions[code], self._blocks(number, window, code, send, recv))
        else:
            mpi()
        if isinstance(choice, Trial) and choice.record(name, perf_counter() - began, 0.0):
            choice.end_round(self._team.most(choice.times()))

    def _blocks(
        self, number: int, window: np.ndarray, code: int, send: np.ndarray, recv: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Callable[[], None]]]:
        """Yield what `Network.allreduce` takes: this rank's part of each block, the sum of its node."""
        assert self._network is not None
        ranks, me = self._board.ranks, self._board.me
        most = self._network.block(recv.nbytes // ranks) // recv.itemsize * ranks
        count = ceil(recv.size / most)
        phase = self._sync.ARRIVED + 1
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
                rest = self._bytes, part * mine.itemsize, mine.view(np.uint8), taken.view(np.uint8)
                phase = self._step(number, phase, self._kernels.spread, *rest)

            yield mine, mine, spread

    def _step(self, number: int, phase: int, kernel: Callable[..., int], *rest: Any) -> int:
        """Run a kernel from a phase on, and return the next phase."""
        board, state = self._board, self._state
        chunks = state[self._kernels.CHUNKS]
        verdict = kernel(board.words, board.place, number, 0, state, phase, *rest)
        self._end(_ALLREDUCE, verdict, kernel, number, 0, phase, *rest)
        return phase + int(state[self._kernels.CHUNKS] - chunks)


def _nothing() -> None:
    pass


def scatters(recvbuf: Any) -> bool:
    """Return whether `Arrays.reduce_scatter` is worth it; the same on all ranks of a call."""
    return _nbytes(recvbuf) >= _SCATTERED


def gathers(recvbuf: Any, ranks: int) -> bool:
    """Return whether `Arrays.allgather` is worth it; the same on all ranks of a call."""
    return _GATHERED * ranks <= _nbytes(recvbuf) <= _MOST_GATHERED


def _fit(send: np.ndarray, recv: np.ndarray, times: int = 1) -> bool:
    """Return whether ``send``, of so many times the size, can be reduced into ``recv``."""
    if send is recv:
        return recv.flags.carray
    return (
        send.dtype == recv.dtype
        and send.size == recv.size * times
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
