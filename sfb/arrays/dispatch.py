"""Collectives of plain arrays: what this library does within a node and between nodes, and what it leaves to MPI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.buffers import fit
from sfb.arrays.call import ALLREDUCE, IALLREDUCE, PlainCall, PlainProposal, alike
from sfb.arrays.internode import NodeRings, RingRequest, Segment, cuts
from sfb.arrays.node import NodeArrays, Task
from sfb.arrays.ops import op_for_mpi
from sfb.runtime.seals import DamagedMessageError
from sfb.runtime.steps import POSTED, run
from sfb.runtime.team import Team
from sfb.trace.now import NOW
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
        """Raise ``error`` on this rank, and on the others of the node an error that names this rank."""
        number = self._agree.begin()
        if self._board.ranks == 1:
            raise error
        call = PlainCall(ALLREDUCE, None, None, MPI.SUM, 1, 0)
        call.error = error
        proposal = PlainProposal(call, number, 0)
        self._agree.post(proposal)
        self._agree.plain(proposal, alike)

    def bytes_of(self, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> int:
        """Return the bytes of an Allreduce, `UNKNOWN` if they cannot be told."""
        if type(recvbuf) is np.ndarray:
            return recvbuf.nbytes
        return self._read(ALLREDUCE, sendbuf, recvbuf, op).nbytes

    @staticmethod
    def large(nbytes: int) -> bool:
        """Return whether so many bytes are not simply MPI's between nodes."""
        return nbytes >= _FAR

    def may_take(self, nbytes: int) -> bool:
        """Return whether to call `allreduce_everywhere` for so many bytes, rather than `allreduce`.

        No exchange may be under way.
        """
        return self.large(nbytes) and self._choices.get(nbytes) is not False

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
        self, sendbuf: Any, recvbuf: Any, op: MPI.Op, mpi: Callable[[Any, Any, MPI.Op], None], *, always: bool = False
    ) -> None:
        """Reduce among the ranks of all nodes, or let MPI do it.

        Args:
            sendbuf: As in `MPI.Intracomm.Allreduce`.
            recvbuf: As in `MPI.Intracomm.Allreduce`.
            op: As in `MPI.Intracomm.Allreduce`.
            mpi: Lets MPI do it, with these arguments or others that mean the same.
            always: Whether to do it here even where MPI is faster.

        Raises:
            MismatchError: Other ranks pass other things; on all of them.
            DamagedMessageError: A message has arrived damaged; on the ranks that learn of it.
        """
        number = self._agree.begin()
        call, task = self._task_far(ALLREDUCE, sendbuf, recvbuf, op)
        proposal = self._post_far(call, number, task is None, blocking=True)
        if not run(self._agree.plain_steps(proposal, alike)) or task is None:
            mpi(*call.arguments, op)
            return
        _, code, send, recv = task
        choice = always or self._choice(call.nbytes)
        name = choice.next if isinstance(choice, Trial) else _OURS if choice else _MPI
        began = perf_counter()
        damage: DamagedMessageError | None = None
        if name == _OURS:
            NOW.algorithm = "ring"
            try:
                self._begin_far(ALLREDUCE, number, code, send, recv).Wait()
            except DamagedMessageError as caught:  # other ranks may not know of it, and go on with the trial
                damage = caught
        else:
            mpi(*call.arguments, op)
        if isinstance(choice, Trial) and choice.record(name, perf_counter() - began, 0.0):
            choice.end_round(self._team.most(choice.times()))
        if damage is not None:
            raise damage

    def iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> Iterator[Any]:
        """Propose an `Iallreduce` to the ranks of all nodes, and return its steps (`sfb.runtime.steps`).

        The bits are those of `allreduce_everywhere`.

        Args:
            sendbuf: As in `MPI.Intracomm.Iallreduce`.
            recvbuf: As in `MPI.Intracomm.Iallreduce`.
            op: As in `MPI.Intracomm.Iallreduce`.

        Raises:
            MismatchError: Other ranks pass other things; raised by the steps, on all ranks.
        """
        number = self._agree.begin()
        call, task = self._task_far(IALLREDUCE, sendbuf, recvbuf, op)
        proposal = self._post_far(call, number, task is None, blocking=False)

        def steps() -> Iterator[Any]:
            yield None
            if (yield from self._agree.plain_steps(proposal, alike)) and task is not None:
                request: Any = self._begin_far(IALLREDUCE, number, *task[1:])
            else:  # the queue orders the collectives of the library's communicator only
                request = self._team.world.Iallreduce(*call.arguments, op_for_mpi(op, call.arguments[1]))
            yield POSTED
            yield request

        return steps()

    def _task_far(self, name: str, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> tuple[PlainCall, Task | None]:
        """Return a call, and what kernels take of it; None if this rank cannot reduce it between nodes."""
        assert self._rings is not None
        call = self._read(name, sendbuf, recvbuf, op)
        task = call.task
        if task is None or not fit(task[2], task[3]):
            return call, None
        nbytes = self._rings.segment_bytes(task[3].nbytes // self._board.ranks)
        try:
            self._rings.reserve(nbytes, on_node=name == IALLREDUCE and self._board.ranks > 1)
        except MemoryError:
            return call, None
        return call, task

    def _post_far(self, call: PlainCall, number: int, left: bool, *, blocking: bool) -> PlainProposal:
        """Post the header of a call between nodes."""
        proposal = PlainProposal(call, number, call.digest(left=left), blocking=blocking)
        self._agree.post(proposal)
        return proposal

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

            def allgather(mine: np.ndarray = mine, taken: np.ndarray = taken) -> None:
                nonlocal phase
                phase = self._step(number, phase, self._kernels.allgather, self._bytes, mine, taken)

            yield mine, mine, allgather


def _nothing() -> None:
    pass
