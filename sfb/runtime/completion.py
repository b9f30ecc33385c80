"""Waiting for several requests, of this library and of mpi4py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from mpi4py import MPI

__all__ = ["Completion", "set_empty"]


class Completion:
    """The functions of `MPI.Request` that complete several requests, for those of this library beside mpi4py's.

    Arguments and results are those of mpi4py. Requests that are not active count as null requests. A function raises
    the error of an exchange that has failed, and leaves the requests of mpi4py for another call then.
    """

    @property
    def active(self) -> bool:
        """Whether an exchange has begun that has not been waited for."""
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """Whether `Test` would raise the error of the exchange."""
        raise NotImplementedError

    def Wait(self, status: MPI.Status | None = None) -> Literal[True]:
        """Wait for the end of the exchange."""
        raise NotImplementedError

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Return whether the exchange has ended."""
        raise NotImplementedError

    def Get_status(self, status: MPI.Status | None = None) -> bool:
        """Return whether the exchange has ended, and leave the request as it is."""
        raise NotImplementedError

    @staticmethod
    def waitall(requests: Sequence[Any], statuses: list[MPI.Status] | None = None) -> list[Any]:
        """Wait for all ``requests``, as `MPI.Request.waitall` does."""
        ours, theirs = _divide(requests)
        made = _statuses(statuses, len(requests))
        error: Exception | None = None
        for i in ours:
            try:
                requests[i].Wait(made[i])
            except Exception as caught:  # the exchanges after it go on
                error = error or caught
        if error is not None:
            raise error
        objects: list[Any] = [None] * len(requests)
        their_statuses = None if statuses is None else [made[i] for i in theirs]
        received = MPI.Request.waitall([requests[i] for i in theirs], their_statuses)
        for i, item in zip(theirs, received, strict=True):
            objects[i] = item
        return objects

    @staticmethod
    def testall(requests: Sequence[Any], statuses: list[MPI.Status] | None = None) -> tuple[bool, list[Any] | None]:
        """Return whether all ``requests`` are complete, as `MPI.Request.testall` does."""
        ended = [request.Get_status() for request in requests]  # each look takes its exchange forward
        if all(ended):
            return True, Completion.waitall(requests, statuses)
        return False, None

    @staticmethod
    def testany(requests: Sequence[Any], status: MPI.Status | None = None) -> tuple[int, bool, Any | None]:
        """Complete one of ``requests`` if that can be done without waiting, as `MPI.Request.testany` does."""
        ours, theirs = _divide(requests)
        active = [i for i in ours if requests[i].active]
        for i in active:
            if requests[i].Test(status):
                return i, True, None
        which, flag, item = MPI.Request.testany([requests[i] for i in theirs], status)
        if which != MPI.UNDEFINED:
            return theirs[which], flag, item
        return MPI.UNDEFINED, flag and not active, None

    @staticmethod
    def waitany(requests: Sequence[Any], status: MPI.Status | None = None) -> tuple[int, Any]:
        """Wait for one of ``requests``, as `MPI.Request.waitany` does."""
        while True:
            which, flag, item = Completion.testany(requests, status)
            if flag:
                return which, item
            os.sched_yield()

    @staticmethod
    def testsome(
        requests: Sequence[Any], statuses: list[MPI.Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Complete those of ``requests`` that can be without waiting, as `MPI.Request.testsome` does."""
        ours, theirs = _divide(requests)
        active = [i for i in ours if requests[i].active]
        ended = [i for i in active if requests[i].Get_status()]
        for i in ended:
            if requests[i].failed:  # before others become inactive, of which the caller would not learn
                requests[i].Wait()
        their_statuses: list[MPI.Status] | None = None if statuses is None else []
        done, items = MPI.Request.testsome([requests[i] for i in theirs], their_statuses)
        if done is None and not active:
            return None, None
        made = _statuses(statuses, len(ended))
        for i, status in zip(ended, made, strict=True):
            requests[i].Wait(status)
        if done is None or items is None:
            return ended, [None] * len(ended)
        if statuses is not None and their_statuses is not None:
            statuses[len(ended) : len(ended) + len(done)] = their_statuses
        return ended + [theirs[i] for i in done], [None] * len(ended) + items

    @staticmethod
    def waitsome(
        requests: Sequence[Any], statuses: list[MPI.Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Wait for some of ``requests``, as `MPI.Request.waitsome` does."""
        while True:
            done, items = Completion.testsome(requests, statuses)
            if done != []:
                return done, items
            os.sched_yield()

    @staticmethod
    def Waitall(requests: Sequence[Any], statuses: list[MPI.Status] | None = None) -> Literal[True]:
        """Wait for all ``requests``, which may be of this library and of mpi4py; their siblings take them, too."""
        Completion.waitall(requests, statuses)
        return True

    @staticmethod
    def Testall(requests: Sequence[Any], statuses: list[MPI.Status] | None = None) -> bool:
        """Return whether all ``requests`` are complete, as `MPI.Request.Testall` does."""
        return Completion.testall(requests, statuses)[0]

    @staticmethod
    def Waitany(requests: Sequence[Any], status: MPI.Status | None = None) -> int:
        """Wait for one of ``requests``, as `MPI.Request.Waitany` does."""
        return Completion.waitany(requests, status)[0]

    @staticmethod
    def Testany(requests: Sequence[Any], status: MPI.Status | None = None) -> tuple[int, bool]:
        """Complete one of ``requests`` if that can be done without waiting, as `MPI.Request.Testany` does."""
        return Completion.testany(requests, status)[:2]

    @staticmethod
    def Waitsome(requests: Sequence[Any], statuses: list[MPI.Status] | None = None) -> list[int] | None:
        """Wait for some of ``requests``, as `MPI.Request.Waitsome` does."""
        return Completion.waitsome(requests, statuses)[0]

    @staticmethod
    def Testsome(requests: Sequence[Any], statuses: list[MPI.Status] | None = None) -> list[int] | None:
        """Complete those of ``requests`` that can be without waiting, as `MPI.Request.Testsome` does."""
        return Completion.testsome(requests, statuses)[0]


def set_empty(status: MPI.Status) -> None:
    """Make a status what MPI calls empty."""
    status.Set_source(MPI.ANY_SOURCE)
    status.Set_tag(MPI.ANY_TAG)
    status.Set_error(MPI.SUCCESS)
    status.Set_elements(MPI.BYTE, 0)
    status.Set_cancelled(False)


def _divide(requests: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Return the places of requests of this library, and those of others."""
    ours: list[int] = []
    theirs: list[int] = []
    for i, request in enumerate(requests):
        (ours if isinstance(request, Completion) else theirs).append(i)
    return ours, theirs


def _statuses(given: list[MPI.Status] | None, count: int) -> list[Any]:
    """Return ``count`` statuses, of the user's list if there is one, which grows to them as mpi4py's does."""
    if given is None:
        return [None] * count
    given += [MPI.Status() for _ in range(len(given), count)]
    return given[:count]
