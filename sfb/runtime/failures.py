"""Ranks that have failed: what a rank knows of them, and what it finds out by itself."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import monotonic
from types import FrameType

from mpi4py import MPI

from sfb.runtime import guard
from sfb.runtime.ending import end_job
from sfb.runtime.errors import RankFailedError
from sfb.runtime.processes import Process, state_of, this_process

__all__ = ["EXCHANGES", "Failures", "UlfmFailures"]

# Frames of these files on a stack mean that the rank is in an exchange with a number, and in that or in one of arrays.
EXCHANGES = os.path.join(guard.PACKAGE, "collectives", "")
_CALLS = EXCHANGES, os.path.join(guard.PACKAGE, "arrays", "")


class Failures(ABC):
    """What a rank knows of failures among the ranks of a communicator; making one is collective.

    A process of the same node that is gone is found by its entry in /proc. Two threads look, too, while no call of this
    library waits (`sfb.runtime.guard`).

    Args:
        world: A communicator of this library.
        timeout: Seconds after which a rank that does not answer has failed.

    Attributes:
        timeout: The time-out.
        failure: The failure; None as long as there is none.
        number: Returns a number that changes with every exchange; None where exchanges are not numbered.
        peers: The processes of the ranks; none if there is one rank.
    """

    def __init__(self, world: MPI.Intracomm, timeout: float) -> None:
        self.timeout = timeout
        self.number: Callable[[], int] | None = None
        self.failure: RankFailedError | None = None
        self.peers: list[Process] = []
        self._world = world
        self._rank = world.rank
        self._lock = threading.RLock()
        self._closed = False
        self._due = 0.0
        self._inside: tuple[tuple[int, ...], float] | None = None
        self._near: list[int] = []
        if world.size > 1:
            own = this_process()
            self.peers = [Process(*peer) for peer in world.allgather(tuple(own))]
            # From the next rank on, so that every rank looks first at another one.
            around = [*range(self._rank + 1, world.size), *range(self._rank)]
            self._near = [rank for rank in around if own.space and self.peers[rank].space == own.space]
            guard.attend(self)

    def look(self, missing: Callable[[], Sequence[int]], what: str, waited: float) -> None:
        """Raise if a rank has failed; what waits calls it again and again.

        Args:
            missing: Returns the ranks waited for.
            what: The call, for messages.
            waited: Seconds of the wait so far.

        Raises:
            RankFailedError: A rank has failed.
        """
        now = monotonic()
        if self.failure is None and now < self._due:
            return
        self._due = now + guard.PERIOD
        self._look(missing, what, waited)
        self.check()

    @abstractmethod
    def _look(self, missing: Callable[[], Sequence[int]], what: str, waited: float) -> None:
        """Do what a wait does once a second."""

    def check(self) -> None:
        """Raise if a rank is known to have failed; for calls that wait for no rank.

        Raises:
            RankFailedError: A rank has failed.
        """
        if self.failure is not None:
            guard.raised(self)
            raise RankFailedError(str(self.failure), self.failure.ranks)

    @abstractmethod
    def find(self) -> None:
        """Raise if a rank of this host is gone, after an error of MPI that may come of that.

        Raises:
            RankFailedError: A rank has failed.
        """

    @abstractmethod
    def watch(self, place: str, frames: Sequence[FrameType]) -> None:
        """End the job if a rank has failed and the main thread does not hear of it; in the thread of the guard.

        Args:
            place: Where the main thread is, for messages.
            frames: Its stack.
        """

    @abstractmethod
    def listen(self, place: str, frames: Sequence[FrameType]) -> None:
        """Look for failures, and answer other ranks, in the thread that listens.

        Args:
            place: Where the main thread is, for messages.
            frames: Its stack.
        """

    @abstractmethod
    def say_farewell(self) -> None:
        """Tell the other ranks that this one is about to end."""

    @abstractmethod
    def wait_for_farewells(self, seconds: float) -> None:
        """Wait until all other ranks that are left are about to end, for at most so many seconds."""

    def close(self) -> None:
        """End the use of the communicator."""
        with self._lock:
            self._closed, self.number = True, None

    def free(self) -> None:
        """End the use of the communicator, and free it; collective."""
        self.close()
        self._world.Free()

    def _over(self) -> bool:
        return self._closed or bool(MPI.Is_finalized())

    def _seconds_inside(self, now: float, frames: Sequence[FrameType], files: tuple[str, ...]) -> float:
        """Return for how long the main thread has been seen at the same place of an exchange, as in a call of MPI."""
        if self.number is None or not any(frame.f_code.co_filename.startswith(files) for frame in frames):
            self._inside = None
            return 0.0
        place = self.number(), id(frames[0]), frames[0].f_lasti
        if self._inside is None or self._inside[0] != place:
            self._inside = place, now
        return now - self._inside[1]

    def _gone(self) -> list[int]:
        """Return the ranks of this host whose processes are gone."""
        return [rank for rank in self._near if state_of(self.peers[rank]) == "gone"]


class UlfmFailures(Failures):
    """What a rank knows of failures where MPI itself tells of them (ULFM), so that a program may go on without ranks.

    The job ends only if MPI has let a rank wait for long although a process of the same node is gone.
    """

    def _look(self, missing: Callable[[], Sequence[int]], what: str, waited: float) -> None:
        self._end_if_unheard(what, waited)

    def find(self) -> None:
        """Do nothing: the error of MPI tells of a failure."""

    def watch(self, place: str, frames: Sequence[FrameType]) -> None:
        """End the job if the main thread has been in a call for long, and MPI has not told of a failure."""
        if not self._over():
            self._end_if_unheard(place, self._seconds_inside(monotonic(), frames, _CALLS))

    def listen(self, place: str, frames: Sequence[FrameType]) -> None:
        """Do nothing: no rank asks another one."""

    def say_farewell(self) -> None:
        """Do nothing: no rank waits for it."""

    def wait_for_farewells(self, seconds: float) -> None:
        """Do nothing: no rank says any."""

    def _end_if_unheard(self, place: str, waited: float) -> None:
        """End the job if this rank has waited for long, and a process of its node is gone: MPI has not told of that."""
        gone = self._gone() if waited > guard.STUCK else []
        if gone:
            text = f"rank {gone[0]} ({self.peers[gone[0]]}) is gone, of which MPI has not told rank {self._rank}"
            end_job(f"{text}, after {waited:.0f} s in {place}")
