"""The ranks that are left when others have died."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import numpy as np
from mpi4py import MPI

from sfb.runtime.errors import raise_reported, report
from sfb.runtime.ulfm import (
    abandon,
    agree,
    blames_death,
    came_of_death,
    enabled,
    has_died,
    mark,
    missing,
    private,
    revoke,
    revoked,
    shrink,
)

__all__ = ["Loss", "Membership"]

_log = logging.getLogger("sfb")
_T = TypeVar("_T")

# What ranks agree on, as bits: that they all take part, and that none of them has an error of its own.
_ALL, _FINE = 1, 2


@dataclass(frozen=True)
class Loss:
    """The death of one or more ranks at about the same time.

    Attributes:
        ranks: Their numbers in the communicator with which the work began.
        left: The number of ranks that are left.
        step: The step from which these have gone on; -1 for the very beginning.
        seconds: From the moment at which this rank met the death until all had the state of that step.

    >>> from sfb.elastic import Loss
    >>> Loss(ranks=(2,), left=3, step=17, seconds=0.4).left
    3
    """

    ranks: tuple[int, ...]
    left: int
    step: int
    seconds: float


class Membership:
    """The ranks that are left of a communicator; making one is collective.

    Args:
        comm: The ranks with which the work begins.
        what: What the user has called, for messages.

    Attributes:
        comm: A communicator of the ranks that are left, in their order.
        losses: The deaths so far.

    Raises:
        RuntimeError: MPI ends the job when a rank dies; the message says how to start it.
    """

    def __init__(self, comm: MPI.Intracomm, what: str) -> None:
        problem = missing()
        if problem is not None:
            raise RuntimeError(f"{what} needs ULFM: {problem}")
        assert enabled()
        self._what = what
        self._first = mark()
        self.comm = private(MPI.Intracomm(MPI.Intracomm(comm).Dup()))
        self._number = self.comm.rank
        self._numbers = list(range(self.comm.size))
        self._began: float | None = None
        self._dead: list[int] = []
        self.losses: list[Loss] = []

    def survive(self, attempt: Callable[[], _T]) -> _T:
        """Return the result of ``attempt``, made anew by the ranks that are left whenever one dies; collective.

        Args:
            attempt: Works on `comm`; what it has begun it drops by itself when it raises.

        Raises:
            Exception: What ``attempt`` raises on this rank for another reason than a death; on other ranks an error of
                that type, if it is a common one, which names the rank.
        """
        while True:
            try:
                result = attempt()
            except Exception as error:
                self._began = self._began or perf_counter()
                # Others may wait for this rank, whatever has happened to it.
                self._go_on(error, died=came_of_death(self.comm, error))
                continue
            if agree(self.comm, _ALL):
                return result
            self._began = self._began or perf_counter()
            self._go_on(None, died=True, agreed=True)

    def check(self) -> None:
        """Raise if this rank knows of a death: collectives of Open MPI may have ended without an error and a result.

        Raises:
            MPI.Exception: A rank has died.
        """
        if has_died(self.comm) or revoked(self._first):
            raise MPI.Exception(MPI.ERR_REVOKED)

    def note(self, step: int) -> None:
        """Note that the ranks that are left have the state of a step, from which they go on."""
        if self._began is None:
            return
        seconds, self._began = perf_counter() - self._began, None
        loss = Loss(tuple(self._dead), self.comm.size, step, seconds)
        self._dead = []
        self.losses.append(loss)
        if self.comm.rank == 0:
            ranks = f"rank{'s' * (len(loss.ranks) > 1)} {', '.join(map(str, loss.ranks))}"
            since = f"step {step}" if step >= 0 else "the beginning"
            _log.warning("%s died; %d go on from %s after %.2f s", ranks, loss.left, since, seconds)

    def _go_on(self, error: Exception | None, *, died: bool, agreed: bool = False) -> None:
        """Let the ranks that are left have a communicator, or raise on all of them; collective over those.

        Args:
            error: What this rank has met.
            died: Whether that came of a death.
            agreed: Whether this rank has met the others in `agree` already.
        """
        while True:
            old = self.comm
            old.Revoke()
            revoke(self._first)
            abandon(self._first)
            if not agreed:
                agree(old, 0)  # with ranks that have come to the end of their work
            agreed = False
            self._first = mark()
            self.comm = private(shrink(old))
            verdict = agree(self.comm, _ALL | _FINE if died else _ALL)
            if not verdict & _ALL:  # another rank has died
                continue
            if not verdict & _FINE:
                self._raise(error)
            found = np.full(self.comm.size, -1)
            try:
                self.comm.Allgather(np.array([self._number]), found)
                self.check()
            except MPI.Exception:
                continue
            numbers = found.tolist()
            self._dead += sorted(set(self._numbers).difference(numbers))
            self._numbers = numbers
            return

    def _raise(self, error: Exception | None) -> None:
        """Raise what some rank has met."""
        own = None if error is None or blames_death(error) else error
        said = self.comm.allgather(("", "") if own is None else report(own))
        if own is not None:
            raise own
        raise_reported(self._what, list(enumerate(said)), None)
