"""Collectives of plain arrays: what this library does within a node and between nodes, and what it leaves to MPI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.buffers import fit, nbytes_of
from sfb.arrays.internode import NodeRings, RingRequest, Segment, cuts
from sfb.arrays.node import ALLREDUCE, IALLREDUCE, NodeArrays
from sfb.arrays.ops import op_for_mpi
from sfb.kernels.header import PLAIN
from sfb.runtime.steps import POSTED
from sfb.runtime.team import Team
from sfb.tuning.profile import Profile, Use
from sfb.tuning.trial import TIMED, Trial

__all__ = ["SETTLED", "Arrays"]

# Bytes from which arrays between nodes are not simply MPI's, and by how much the time of MPI must be longer.
_FAR, _GAIN = 1 << 20, 1.02
# Sizes for which a `Comm` keeps whether it or MPI is faster, and the calls of a size after which that is settled.
_KNOWN, SETTLED = 4096, 2 * TIMED + 1

# Who is timed.
_OURS, _MPI = "arrays", "mpi"


class Arrays(NodeArrays):
    """Collectives of plain arrays by the ranks of a team.

    Between nodes, too, every element is reduced in one order, of the ranks of a node and then of nodes around a ring.

    Args:
        team: The ranks.
        profile: Returns their profile if it was measured before, or is not to be measured; collective.

    Attributes:
        far: Whether it works between nodes.
    """

    def __init__(self, team: Team, profile: Callable[[], Profile | None]) -> None:
        super().__init__(team)
        self._profile = profile
        reductions = (MPI.SUM, np.add), (MPI.PROD, np.multiply), (MPI.MAX, np.maximum), (MPI.MIN, np.minimum)
        self._reductions = {self._codes[op.handle]: reduction for op, reduction in reductions}
        self._rings = NodeRings(team) if NodeRings.serves(team) else None
        self.far = self._rings is not None
        self.left = _FAR if team.nodes == team.size else 0
        self._choices: dict[int, Trial | bool] = {}

    def refuse(self, error: Exception) -> None:
        """Raise ``error`` on this rank, and on the others an error that names this rank."""
        self._agree.plain(ALLREDUCE, self._agree.begin(), error=error)

    def large(self, recvbuf: Any) -> bool:
        """Return whether a buffer is not simply MPI's; the same on all ranks."""
        return self.far and (recvbuf.nbytes if type(recvbuf) is np.ndarray else nbytes_of(recvbuf)) >= _FAR

    def takes(self, recvbuf: Any) -> bool:
        """Return whether to call `allreduce_everywhere` with a large buffer; the same on all ranks, maybe collective.

        No exchange may be under way.
        """
        return self._choice(nbytes_of(recvbuf)) is not False

    def _choice(self, nbytes: int) -> Trial | bool:
        """Return whether arrays of so many bytes are not left to MPI between nodes, or the trial that will tell."""
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
            # The median, not the least: messages of many segments are now and then much slower than at best.
            ours, mpi = (median(choice.seconds[name][1:]) for name in (_OURS, _MPI))
            choice = self._choices[nbytes] = _GAIN * ours < mpi
        return choice

    def allreduce_everywhere(
        self, sendbuf: Any, recvbuf: Any, op: MPI.Op, mpi: Callable[[], None], *, always: bool = False
    ) -> None:
        """Reduce among the ranks of all nodes, or let MPI do it.

        Args:
            sendbuf: As in `MPI.Intracomm.Allreduce`.
            recvbuf: As in `MPI.Intracomm.Allreduce`.
            op: As in `MPI.Intracomm.Allreduce`.
            mpi: Lets MPI do it.
            always: Whether to do it here even where MPI is faster.

        Raises:
            MismatchError: Other ranks do not pass plain arrays; on all of them.
        """
        number, nbytes = self._agree.begin(), nbytes_of(recvbuf)
        task = self._task_far(ALLREDUCE, sendbuf, recvbuf, op)
        digest = PLAIN if task is None else task[0]
        if not self._agree.plain_everywhere(ALLREDUCE, number, digest, nbytes):
            mpi()
            return
        assert task is not None
        _, code, send, recv = task
        choice = always or self._choice(nbytes)
        name = choice.next if isinstance(choice, Trial) else _OURS if choice else _MPI
        began = perf_counter()
        if name == _OURS:
            self._begin_far(ALLREDUCE, number, code, send, recv).Wait()
        else:
            mpi()
        if isinstance(choice, Trial) and choice.record(name, perf_counter() - began, 0.0):
            choice.end_round(self._team.most(choice.times()))

    def iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> Iterator[Any]:
        """Propose an `Iallreduce` to the ranks of all nodes, and return its steps (`sfb.runtime.steps`).

        The bits are those of `allreduce_everywhere`.

        Args:
            sendbuf: As in `MPI.Intracomm.Iallreduce`.
            recvbuf: As in `MPI.Intracomm.Iallreduce`.
            op: As in `MPI.Intracomm.Iallreduce`.

        Raises:
            MismatchError: Other ranks do not pass plain arrays; raised by the steps, on all ranks.
        """
        number = self._agree.begin()
        task = self._task_far(IALLREDUCE, sendbuf, recvbuf, op)
        digest = PLAIN if task is None else task[0]
        proposal = self._agree.propose_plain(IALLREDUCE, number, digest, nbytes_of(recvbuf))

        def steps() -> Iterator[Any]:
            yield None
            if (yield from self._agree.plain_steps(proposal)):
                assert task is not None
                request: Any = self._begin_far(IALLREDUCE, number, *task[1:])
            else:  # the queue orders the collectives of the library's communicator only
                request = self._team.world.Iallreduce(sendbuf, recvbuf, op_for_mpi(op, recvbuf))
            yield POSTED
            yield request

        return steps()

    def _task_far(
        self, name: str, sendbuf: Any, recvbuf: Any, op: MPI.Op
    ) -> tuple[int, int, np.ndarray, np.ndarray] | None:
        """Return what `_task` does, None if this rank cannot reduce it between nodes."""
        assert self._rings is not None
        task = self._task(sendbuf, recvbuf, op)
        if task is None:
            return None
        digest, code, send, recv = task
        if not fit(send, recv):
            return None
        nbytes = self._rings.segment_bytes(recv.nbytes // self._board.ranks)
        try:
            self._rings.reserve(nbytes, on_node=name == IALLREDUCE and self._board.ranks > 1)
        except MemoryError:
            return None
        return self._named(name, digest), code, send, recv

    def _begin_far(self, name: str, number: int, code: int, send: np.ndarray, recv: np.ndarray) -> RingRequest:
        """Begin to reduce among the ranks of all nodes."""
        assert self._rings is not None
        on_node = name == IALLREDUCE and self._board.ranks > 1
        segments = self._segments(send, recv)
        if self._board.ranks > 1 and not on_node:
            segments = self._parts(number, code, segments)
        return self._rings.begin(number, name, self._reductions[code], segments, on_node=on_node)

    def _segments(self, send: np.ndarray, recv: np.ndarray) -> Iterator[Segment]:
        """Yield the segments of an array."""
        assert self._rings is not None
        ranks = self._board.ranks
        most = self._rings.segment_bytes(recv.nbytes // ranks) // recv.itemsize * ranks
        bounds = cuts(recv.size, -(-recv.size // most))
        for low, high in pairwise(bounds):
            yield send[low:high], recv[low:high], _nothing

    def _parts(self, number: int, code: int, segments: Iterator[Segment]) -> Iterator[Segment]:
        """Yield this rank's part of the node's sum of each segment, which the ranks gather when its result is there."""
        ranks, me = self._board.ranks, self._board.me
        phase = self._sync.ARRIVED + 1
        for given, taken, _ in segments:
            part = -(-taken.size // ranks)
            mine = taken[me * part : (me + 1) * part]
            phase = self._step(number, phase, self._kernels.reduce_scatter, self._bytes, code, given, mine)

            def allgather(mine: np.ndarray = mine, taken: np.ndarray = taken, part: int = part) -> None:
                nonlocal phase
                rest = self._bytes, part * mine.itemsize, mine.view(np.uint8), taken.view(np.uint8)
                phase = self._step(number, phase, self._kernels.allgather, *rest)

            yield mine, mine, allgather


def _nothing() -> None:
    pass
