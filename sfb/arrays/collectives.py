"""What an `sfb.Comm` does with plain arrays: by this library where that is faster, by MPI otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.call import ALLREDUCE, GATHER, IALLREDUCE, SCATTER, PlainCall
from sfb.arrays.dispatch import Arrays
from sfb.arrays.finite import check_everywhere
from sfb.arrays.ops import op_for_mpi
from sfb.runtime.progress import Progress
from sfb.runtime.team import Team
from sfb.runtime.windows import find_named
from sfb.trace.now import NOW
from sfb.tuning.lookup import Profiles

__all__ = ["PlainCollectives", "again_in_place"]

_log = logging.getLogger("sfb")

_INIT = "Allreduce_init"
_MPI: dict[str, Callable[..., Any]] = {
    name: getattr(MPI.Intracomm, name) for name in (ALLREDUCE, IALLREDUCE, _INIT, SCATTER, GATHER)
}


class PlainCollectives:
    """The collectives of plain arrays of a communicator, and the exchanges that may be under way beside them.

    Args:
        profiles: The profile of the machine.
        progress: The exchanges under way.
        check: Whether ranks find out first what the others pass.
        check_finite: Whether NaN and infinity in what is reduced are errors.

    Attributes:
        left: Bytes below which MPI reduces an array, whatever other ranks propose.
        arrays: What exchanges plain arrays; None before the first call, or where Numba cannot be imported.
    """

    def __init__(self, profiles: Profiles, progress: Progress, *, check: bool, check_finite: bool = False) -> None:
        self._profiles = profiles
        self._progress = progress
        self._queue = progress.queue
        self._check = check
        self._check_finite = check_finite
        self._helpless = False
        self.left = 0
        self.arrays: Arrays | None = None

    @property
    def position(self) -> tuple[str, int]:
        """The label of the communicator, and the number of its last call; -1 before the library has its own."""
        return ("", -1) if self.arrays is None else self.arrays.position

    def allreduce(self, comm: MPI.Intracomm, team: Callable[[], Team], sendbuf: Any, recvbuf: Any, op: MPI.Op) -> None:
        """Do what `MPI.Intracomm.Allreduce` does.

        Args:
            comm: The communicator.
            team: Returns its ranks; collective.
            sendbuf: As in `MPI.Intracomm.Allreduce`.
            recvbuf: As in `MPI.Intracomm.Allreduce`.
            op: As in `MPI.Intracomm.Allreduce`.
        """
        if self._check_finite:
            check_everywhere(comm, ALLREDUCE, sendbuf, recvbuf)
        if not self._check:
            self._progress.under_way()
            reduce_by_mpi(comm, sendbuf, recvbuf, op)
            return
        arrays = self.arrays or self.of(comm, team)
        busy = self._queue.busy and self._progress.under_way()
        if arrays is None:
            reduce_by_mpi(comm, sendbuf, recvbuf, op)
        elif arrays.far and arrays.may_take(arrays.bytes_of(sendbuf, recvbuf, op)):
            self._queue.drain()
            arrays.allreduce_everywhere(sendbuf, recvbuf, op, partial(reduce_by_mpi, comm))
        else:
            left = arrays.allreduce(sendbuf, recvbuf, op, leave=busy)
            if left is not None:
                reduce_by_mpi(comm, *left, op)

    def reduce_scatter(
        self, comm: MPI.Intracomm, team: Callable[[], Team], sendbuf: Any, recvbuf: Any, op: MPI.Op
    ) -> None:
        """Do what `MPI.Intracomm.Reduce_scatter_block` does; arguments as in `allreduce`."""
        if self._check_finite:
            check_everywhere(comm, SCATTER, sendbuf, recvbuf)
        arrays, busy = self._checked(comm, team), self._progress.under_way()
        left = (sendbuf, recvbuf) if arrays is None else arrays.reduce_scatter(sendbuf, recvbuf, op, leave=busy)
        if left is not None:
            by_mpi(SCATTER, comm, *left, op)

    def allgather(self, comm: MPI.Intracomm, team: Callable[[], Team], sendbuf: Any, recvbuf: Any) -> None:
        """Do what `MPI.Intracomm.Allgather` does; arguments as in `allreduce`."""
        arrays, busy = self._checked(comm, team), self._progress.under_way()
        left = (sendbuf, recvbuf) if arrays is None else arrays.allgather(sendbuf, recvbuf, leave=busy)
        if left is not None:
            by_mpi(GATHER, comm, *left)

    def iallreduce(self, comm: MPI.Intracomm, team: Team | None, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> Any:
        """Do what `MPI.Intracomm.Iallreduce` does.

        Args:
            comm: The communicator.
            team: Its ranks, if they have been made, which all do together. They do not wait for each other here, as
                MPI's call would not.
            sendbuf: As in `MPI.Intracomm.Iallreduce`.
            recvbuf: As in `MPI.Intracomm.Iallreduce`.
            op: As in `MPI.Intracomm.Iallreduce`.
        """
        if self._check_finite:
            check_everywhere(comm, IALLREDUCE, sendbuf, recvbuf)
        if self._check and team is not None and team.nodes > 1 and self._progress.threaded:
            arrays = self.arrays or self.of(comm, lambda: team)
            if arrays is not None and arrays.far and arrays.large(arrays.bytes_of(sendbuf, recvbuf, op)):
                queued = self._queue.begin(lambda alone: arrays.iallreduce(sendbuf, recvbuf, op))
                return self._progress.request(queued)
        return by_mpi(IALLREDUCE, comm, sendbuf, recvbuf, op)

    @staticmethod
    def allreduce_init(comm: MPI.Intracomm, sendbuf: Any, recvbuf: Any, op: MPI.Op, info: MPI.Info) -> MPI.Prequest:
        """Do what `MPI.Intracomm.Allreduce_init` does."""
        return by_mpi(_INIT, comm, sendbuf, recvbuf, op, info)

    def refuse(self, comm: MPI.Intracomm, team: Callable[[], Team], error: Exception) -> None:
        """Raise an error of a call that is no call of MPI, and on the other ranks of the node one that names this."""
        arrays = (self.arrays or self.of(comm, team)) if self._check else None
        if arrays is not None:
            arrays.refuse(error)
        raise error

    def of(self, comm: MPI.Intracomm, team: Callable[[], Team]) -> Arrays | None:
        """Return what exchanges plain arrays; None, for MPI to do it, without compiled kernels or room for a board."""
        if not self._helpless and self.arrays is None:
            try:
                ranks = team()
                self.arrays = Arrays(ranks, partial(self._profiles.find, ranks))
                self.left = 0 if self._check_finite else self.arrays.left
            except (ImportError, MemoryError) as error:  # on all ranks, which raise together
                self._helpless = True
                if comm.rank == 0:
                    _log.warning("plain arrays are left to MPI, unchecked: %s", error)
        return self.arrays

    def forget(self) -> None:
        """Drop what belongs to the team, which is about to be freed."""
        self.arrays, self.left = None, 0

    def _checked(self, comm: MPI.Intracomm, team: Callable[[], Team]) -> Arrays | None:
        if not self._check or comm.size == 1:
            return None
        return self.arrays or self.of(comm, team)


def reduce_by_mpi(comm: MPI.Intracomm, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> None:
    """Let MPI do an Allreduce."""
    if type(recvbuf) is np.ndarray and find_named(recvbuf) is not None:
        # MPI may compute in the result, which other ranks may have passed, too.
        result = np.array(recvbuf)
        by_mpi(ALLREDUCE, comm, MPI.IN_PLACE if sendbuf is recvbuf else sendbuf, result, op)
        np.copyto(recvbuf, result)
    else:
        by_mpi(ALLREDUCE, comm, sendbuf, recvbuf, op)


def by_mpi(name: str, comm: MPI.Intracomm, sendbuf: Any, recvbuf: Any, *rest: Any) -> Any:
    """Let MPI do a call, and return its result; memory that is sent and received at once counts as `MPI.IN_PLACE`.

    Args:
        name: The function.
        comm: The communicator.
        sendbuf: As in the function.
        recvbuf: As in the function.
        *rest: The other arguments, first of all the operation of a reduction.
    """
    NOW.algorithm = "mpi"
    if rest:
        rest = op_for_mpi(rest[0], recvbuf), *rest[1:]
    try:
        return _MPI[name](comm, sendbuf, recvbuf, *rest)
    except MPI.Exception:
        return again_in_place(name, comm, sendbuf, recvbuf, *rest)


def again_in_place(name: str, comm: MPI.Intracomm, sendbuf: Any, recvbuf: Any, *rest: Any) -> Any:
    """Do a call in place that MPI has refused since both buffers are the same memory; raise its exception otherwise."""
    call = PlainCall(name, sendbuf, recvbuf, rest[0] if rest else MPI.SUM, comm.size, comm.rank)
    if call.error is not None or call.arguments[0] is sendbuf:
        raise
    return _MPI[name](comm, *call.arguments, *rest)
