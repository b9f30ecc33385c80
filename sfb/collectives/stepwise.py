"""Stepwise exchanges: a header, then the steps of an algorithm, which are calls of MPI and of kernels."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import perf_counter
from typing import Any

from sfb.collectives.persistent import PendingCall, PersistentExchange
from sfb.collectives.problem import Problem
from sfb.factors import Factors
from sfb.kernels import status
from sfb.runtime.queue import QueuedExchange
from sfb.runtime.steps import run
from sfb.runtime.team import Team

__all__ = ["StepwiseExchange"]


class StepwiseExchange(PersistentExchange):
    """An exchange by any algorithm, among any number of nodes, of any size.

    Args:
        algorithm: The algorithm's name.
        problem: The exchange.
        team: The ranks.
        check: Raises TypeError or ValueError if a call's receiver cannot take its factors.
        rounded: Returns factors as they travel in the call with a number.
    """

    def __init__(
        self,
        algorithm: str,
        problem: Problem,
        team: Team,
        check: Callable[[PendingCall], None],
        rounded: Callable[[Factors, int], Factors],
    ) -> None:
        super().__init__(algorithm, problem, team)
        self._check = check
        self._rounded = rounded
        self._steps: Generator[Any, None, None] | None = None
        self._queued: QueuedExchange | None = None

    def start(self, pending: PendingCall) -> bool:
        """Check the arguments and post a header."""
        try:
            self._check(pending)
        except (TypeError, ValueError):
            return False
        self.code, self.agreed = status.PENDING, False
        self._team.agree.propose(pending)
        self._steps = self._work(pending)
        return True

    def test(self) -> bool:
        """Go on without waiting; no older exchange may be under way."""
        if self._queued is None:
            self._queued = QueuedExchange(self.steps())
        self._queued.advance(oldest=True)
        if self._queued.error is not None:
            raise self._queued.error
        return self._queued.done

    def wait(self) -> int:
        """Take all steps."""
        if self._queued is None:
            run(self.steps())
        while self._queued is not None and not self.test():
            self._queued.wait_for_step()
        return self.code

    def steps(self) -> Generator[Any, None, None]:
        """Agree, then take the steps of the algorithm."""
        assert self._steps is not None
        return self._steps

    def hand_over(self, pending: PendingCall) -> None:
        """Leave the call as it is: the ranks agree, and each knows the samples of all."""

    def forget(self) -> None:
        """Drop the arguments of the last exchange."""
        self._steps = self._queued = None

    def run(self, pending: PendingCall) -> Generator[Any, None, None]:
        """Do the exchange of an agreed call, with rounded factors if they travel in 16 bits."""
        pending.factors = self._rounded(pending.factors, pending.number)
        return super().run(pending)

    def _work(self, pending: PendingCall) -> Generator[Any, None, None]:
        yield None
        posted = perf_counter()
        yield from self._team.agree.steps(pending)
        self.waited = perf_counter() - posted
        self.agreed = True
        if pending.counts is None:
            yield from self.run(pending)
        self.code = status.DONE if pending.counts is None else status.UNEVEN
