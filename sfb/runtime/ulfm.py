"""What is left of communicators when a rank dies, by MPI's user-level failure mitigation (ULFM)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import cache, reduce
from itertools import accumulate, count
from time import monotonic, sleep
from typing import Any, Protocol

from mpi4py import MPI

from sfb.runtime.limits import NO_TAG

__all__ = [
    "ObjectReductions",
    "abandon",
    "agree",
    "blames_death",
    "came_of_death",
    "enabled",
    "has_died",
    "mark",
    "missing",
    "private",
    "revoke",
    "revoked",
    "shrink",
    "watch",
]

# Errors by which MPI tells of a death. A call on several requests says only that one of them has failed.
_CLASSES = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED, MPI.ERR_IN_STATUS)

# What mpirun tells each rank by --with-ft.
_OPTION = "OMPI_MCA_mpi_ft_enable"

# Seconds within which a rank hears of the death that an error came of.
_PATIENCE = 1.0
# Calls of Shrink that may fail since further ranks die meanwhile.
_TRIES = 100

# The communicators of the library that have not been freed, by numbers in the order in which they were made.
_private: dict[int, MPI.Intracomm] = {}
_numbers = count()
# Those of the user that hold memory and threads, in the same order.
_watched: dict[int, weakref.ref[Abandonable]] = {}


class Abandonable(Protocol):
    """A communicator of the user with which the library does something."""

    def abandon(self) -> None:
        """Give up what the library holds on it, without the other ranks."""


@cache
def missing() -> str | None:
    """Return why the ranks that are left cannot go on when one dies, and how to start so that they can; else None."""
    library = " ".join(MPI.Get_library_version().split(",")[0].split()[:3])
    advice = "start with `mpirun --with-ft ulfm` of Open MPI 5, which goes on when a rank dies"
    if not library.startswith("Open MPI"):
        return f"{library} ends a job one of whose ranks dies; {advice}"
    if os.environ.get(_OPTION, "").lower() not in ("1", "true", "yes", "enabled"):
        return f"{library} ends a job one of whose ranks dies unless it is asked not to; {advice}"
    return None


def enabled() -> bool:
    """Return whether the ranks that are left may go on when one dies."""
    return missing() is None


class ObjectReductions:
    """Reductions of objects that end when the communicator is revoked; a base class beside `MPI.Intracomm`.

    mpi4py reduces objects in a duplicate of the communicator that it keeps to itself, so nobody can revoke that.
    """

    def allreduce(self: Any, sendobj: Any, op: Callable[[Any, Any], Any] = MPI.SUM) -> Any:
        """Return the reduction of the objects of all ranks; collective."""
        if not enabled():
            return super().allreduce(sendobj, op)  # type: ignore[misc]
        return reduce(op, self.allgather(sendobj))

    def reduce(self: Any, sendobj: Any, op: Callable[[Any, Any], Any] = MPI.SUM, root: int = 0) -> Any:
        """Return the reduction of the objects of all ranks on rank ``root``, None on others; collective."""
        if not enabled():
            return super().reduce(sendobj, op, root)  # type: ignore[misc]
        objects = self.gather(sendobj, root)
        return None if objects is None else reduce(op, objects)

    def scan(self: Any, sendobj: Any, op: Callable[[Any, Any], Any] = MPI.SUM) -> Any:
        """Return the reduction of the objects of the ranks up to this one; collective."""
        if not enabled():
            return super().scan(sendobj, op)  # type: ignore[misc]
        return [*accumulate(self.allgather(sendobj), op)][self.rank]

    def exscan(self: Any, sendobj: Any, op: Callable[[Any, Any], Any] = MPI.SUM) -> Any:
        """Return the reduction of the objects of the ranks before this one, None on rank 0; collective."""
        if not enabled():
            return super().exscan(sendobj, op)  # type: ignore[misc]
        return [None, *accumulate(self.allgather(sendobj), op)][self.rank]


class _Private(ObjectReductions, MPI.Intracomm):
    """A communicator of the library."""


def private(comm: MPI.Intracomm) -> MPI.Intracomm:
    """Return a communicator for the library, in the place of ``comm``, which `revoke` revokes until it is freed."""
    if not enabled():
        return comm
    for number in [number for number, each in _private.items() if each == MPI.COMM_NULL]:
        del _private[number]
    own = _private[next(_numbers)] = _Private(comm)
    return own


def watch(comm: Abandonable) -> None:
    """Note a communicator of the user that `abandon` is to give up, as long as it lives."""
    if enabled():
        for number in [number for number, each in _watched.items() if each() is None]:
            del _watched[number]
        _watched[next(_numbers)] = weakref.ref(comm)


def abandon(first: int) -> None:
    """Give up what the library holds on the user's communicators from a `mark` on."""
    for number, reference in list(_watched.items()):
        comm = reference()
        if number >= first and comm is not None:
            comm.abandon()


def mark() -> int:
    """Return a number below those that `private` and `watch` give from now on."""
    return next(_numbers)


def revoke(first: int) -> None:
    """Revoke the communicators of the library from a `mark` on, so that no rank waits in one for this rank."""
    for number, comm in _private.items():
        if number >= first and comm != MPI.COMM_NULL:
            comm.Revoke()


def revoked(first: int) -> bool:
    """Return whether a communicator of the library from a `mark` on has been revoked, as far as this rank knows."""
    return any(comm.Is_revoked() for number, comm in _private.items() if number >= first and comm != MPI.COMM_NULL)


def has_died(comm: MPI.Intracomm) -> bool:
    """Return whether this rank has heard that one of ``comm`` has died, or that another rank has heard so."""
    if comm.Is_revoked():
        return True
    failed = comm.Get_failed()
    dead = failed.size > 0
    if dead:
        failed.Free()
    return dead


def blames_death(error: BaseException | None) -> bool:
    """Return whether an error, or what it came of, tells of a death."""
    while error is not None:
        if isinstance(error, MPI.Exception) and error.Get_error_class() in _CLASSES:
            return True
        error = error.__cause__ or error.__context__
    return False


def came_of_death(comm: MPI.Intracomm, error: Exception) -> bool:
    """Return whether an error came of the death of a rank of ``comm``; wait a while to hear of it."""
    end = monotonic() + _PATIENCE
    while not (blames_death(error) or has_died(comm)):
        if monotonic() > end:
            return False
        MPI.COMM_SELF.Iprobe(MPI.ANY_SOURCE, NO_TAG)  # lets MPI progress
        sleep(1e-3)
    return True


def agree(comm: MPI.Intracomm, flag: int) -> int:
    """Return the bitwise and of the flags of all ranks that are left, 0 if any has died; collective over those."""
    try:
        return comm.Agree(flag)
    except MPI.Exception:  # on all of them alike
        return 0


def shrink(comm: MPI.Intracomm) -> MPI.Intracomm:
    """Return a communicator of the ranks that are left, in their order; collective over those."""
    for _ in range(_TRIES):
        try:
            new = MPI.Intracomm(comm.Shrink())
        except MPI.Exception:  # another rank has died
            continue
        new.Set_errhandler(MPI.ERRORS_RETURN)
        return new
    raise RuntimeError(f"MPI has not formed a communicator of the ranks that are left, in {_TRIES} tries")
