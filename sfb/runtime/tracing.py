"""What traces and the watchdog need of MPI: labels of communicators, clocks of their ranks, the end of the program."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from time import sleep
from typing import Any

from mpi4py import MPI

from sfb.trace.clocks import measure
from sfb.trace.now import NOW
from sfb.trace.settings import write_trace
from sfb.trace.watchdog import attend

__all__ = ["enter", "join", "leave"]

_log = logging.getLogger("sfb")

# Seconds after which rank 0 asks no further rank for its clock; the uncertainty that needs few messages, and how many
# others get.
_SECONDS, _SURE, _MOST = 2.0, 1.5e-5, 1000
# Seconds for which rank 0 waits for the others at the end of the program.
_PATIENCE = 10.0
_TAG = 8

# The ranks to measure of each communicator with ranks that record, by its label: one for each clock but that of rank 0.
_measured: dict[str, list[int]] = {}
_end: _End | None = None


def enter() -> None:
    """Note which rank this is, and watch over it."""
    if NOW.rank < 0 and MPI.Is_initialized() and not MPI.Is_finalized():
        NOW.place(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
        attend()


def join(comm: MPI.Intracomm, team: Any = None) -> str:
    """Return the label of a communicator of the library, the same on all ranks and of no other; collective.

    If ranks record events, all measure their clocks.

    Args:
        comm: The communicator.
        team: The team that owns it, if one does.
    """
    enter()
    NOW.joined += 1
    recorder = NOW.recorder
    own: tuple[Any, ...] = None, None
    if recorder is not None:
        if recorder.run[0] >= NOW.size:  # it has not been offered yet
            recorder.run = NOW.rank, recorder.run[1]
        own = recorder.run, recorder.clock_name
    offers = comm.allgather((NOW.rank, NOW.joined, NOW.problem, *own))
    label = f"{offers[0][0]}.{offers[0][1]}"
    _tell([(rank, problem) for rank, _, problem, *_ in offers if problem])
    runs = [run for *_, run, _ in offers if run is not None]
    if runs:
        names = [name for *_, name in offers]
        firsts = {name: rank for rank, name in reversed(list(enumerate(names))) if name not in (None, names[0])}
        ranks = _measured[label] = sorted(firsts.values())
        if recorder is not None:
            recorder.run = min(runs)  # what the first of the ranks has drawn: files of one run know each other by it
            recorder.communicators[label] = [rank for rank, *_ in offers]
        _measure(comm, offers[0][0], ranks)
        if ranks and len(runs) == comm.size:
            _meet_at_end(comm, offers[0][0], ranks)
    if team is not None:
        NOW.teams.add(team)
    return label


def leave(comm: MPI.Intracomm, label: str) -> None:
    """Measure the clocks again and write what is recorded so far, if ranks record events; collective."""
    ranks = _measured.pop(label, None)
    if ranks is not None:
        _measure(comm, comm.bcast(NOW.rank), ranks)
        write_trace("free")


def _tell(problems: list[tuple[int, str]]) -> None:
    """Let the first of the ranks that have no trace say why."""
    if problems and problems[0][0] == NOW.rank:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        _log.warning("rank %d%s: %s", NOW.rank, more, problems[0][1])
    NOW.problem = ""


def _measure(comm: MPI.Intracomm, reference: int, ranks: Sequence[int], *, patience: float = inf) -> None:
    """Measure by how much the clocks of some ranks are ahead of that of ``reference``, their rank 0; collective."""
    recorder = NOW.recorder
    if recorder is None:
        measure(comm, MPI.Wtime, _SECONDS, ranks=ranks, sure=_SURE, most=_MOST, patience=patience)
        return
    clock = recorder.clock
    own, _ = measure(comm, lambda: clock() * 1e-9, _SECONDS, ranks=ranks, sure=_SURE, most=_MOST, patience=patience)
    if own is not None and ranks:
        ahead, unsure, at = (round(seconds * 1e9) for seconds in own)
        recorder.clocks.append((reference, at, ahead, unsure))


class _End:
    """The end of the program, at which the ranks measure their clocks once more.

    Args:
        comm: The ranks, on a communicator of their own.
        reference: Their rank 0, in COMM_WORLD.
        ranks: Those to measure.
    """

    def __init__(self, comm: MPI.Intracomm, reference: int, ranks: Sequence[int]) -> None:
        self._comm = comm
        self._reference = reference
        self._ranks = ranks
        # MPI deletes the attributes of COMM_SELF at the beginning of Finalize; Python's end deletes this one before.
        self._key = MPI.Comm.Create_keyval(delete_fn=self._deleted)
        MPI.COMM_SELF.Set_attr(self._key, self)
        atexit.register(self._exit)

    def _exit(self) -> None:
        if not MPI.Is_finalized():
            MPI.COMM_SELF.Delete_attr(self._key)

    def _deleted(self, comm: MPI.Comm, key: int, value: object) -> None:
        with suppress(Exception):  # the end of a program is not to fail because of its trace
            self._measure()
        write_trace("end")

    def _measure(self) -> None:
        """Measure the clocks, if all of these ranks come in time."""
        comm = self._comm
        if comm.rank in self._ranks:
            comm.Isend(b"", 0, _TAG).Free()
            _measure(comm, self._reference, self._ranks, patience=2 * _PATIENCE)
        if comm.rank > 0:
            return
        arrivals = [comm.Irecv(bytearray(), rank, _TAG) for rank in self._ranks]
        began = MPI.Wtime()
        while not MPI.Request.Testall(arrivals):
            if MPI.Wtime() - began > _PATIENCE:
                for request in arrivals:
                    if request != MPI.REQUEST_NULL:
                        request.Cancel()
                        request.Wait()
                return
            sleep(1e-4)
        _measure(comm, self._reference, self._ranks, patience=2 * _PATIENCE)


def _meet_at_end(comm: MPI.Intracomm, reference: int, ranks: Sequence[int]) -> None:
    """Let ranks measure their clocks at the end of the program, unless they do so with others; collective."""
    global _end
    if comm.allreduce(_end is None, MPI.LAND):
        _end = _End(MPI.Intracomm(comm.Dup()), reference, ranks)
