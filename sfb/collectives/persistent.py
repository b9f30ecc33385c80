"""Persistent exchanges: what an exchange of factors needs, prepared once, started as often as wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from time import perf_counter
from typing import Any

from sfb.collectives import ALGORITHMS
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.factors import Factors
from sfb.kernels import status
from sfb.receiver import Receiver
from sfb.runtime.agreement import Proposal
from sfb.runtime.requests import QueuedExchange
from sfb.runtime.steps import run
from sfb.runtime.team import Team

__all__ = ["PersistentExchange", "StepwiseExchange", "is_brief", "kernel_arguments"]

# Multiplications from which the threads of a rank share them; a fused or eager exchange has one thread.
_WORTH = 1 << 21


class PersistentExchange(ABC):
    """An exchange of factors by one algorithm, for one problem; `start`, then `test` or `wait`, as often as wanted.

    `start` proposes the exchange to the other ranks, and sends along what it can. The exchange ends with a status:
    `DONE`; or another one, with nothing changed, if the ranks do not all start this exchange. The caller then takes
    `proposal` to agree with them on another.

    Args:
        algorithm: The algorithm's name.
        problem: The exchange.
        team: The ranks.

    Attributes:
        algorithm: The algorithm's name.
        problem: The exchange.
        code: The status (`sfb.kernels.status`), `PENDING` while the exchange is under way.
        waited: Seconds that this rank waited for the others to agree, in the last exchange.
        rebuild_seconds: Seconds that it spent in forming and applying the sum.
        concurrent: Whether other exchanges may be under way when it starts.
    """

    concurrent = True

    def __init__(self, algorithm: str, problem: Problem, team: Team) -> None:
        self.algorithm = algorithm
        self.problem = problem
        self.code: int = status.DONE
        self.waited = 0.0
        self.rebuild_seconds = 0.0
        self._team = team
        self._number = 0
        self._call = ""

    @abstractmethod
    def start(
        self,
        call: str,
        digest: int,
        size: int,
        factors: Factors,
        receiver: Receiver,
        describe: Callable[[], str],
        *,
        blocking: bool,
    ) -> bool:
        """Propose the exchange; return False, with nothing proposed, if it does not take these arguments.

        Args:
            call: The user's call, for messages.
            digest: Stands for all that has to be equal on all ranks.
            size: S, or what else ranks compare in its place.
            factors: This rank's factors.
            receiver: What takes the sum.
            describe: Returns what this rank passed, for messages.
            blocking: Look for the other ranks a while, as the caller is about to wait.
        """

    @abstractmethod
    def test(self) -> bool:
        """Go on without waiting; return whether the exchange has ended."""

    @abstractmethod
    def wait(self) -> int:
        """Wait for the end of the exchange, and return its status."""

    @abstractmethod
    def proposal(self, describe: Callable[[], str]) -> Proposal:
        """Return the proposal of an exchange that ended without being done, to go on from."""

    def forget(self) -> None:
        """Drop the arguments of the exchange that has ended: whoever owns the arrays decides how long they live."""

    def Test(self) -> bool:
        """Do what `test` does, as of an MPI request."""
        return self.test()

    def Wait(self) -> None:
        """Do what `wait` does, as of an MPI request."""
        self.wait()

    def steps(self) -> Generator[Any, None, int]:
        """Do what `wait` does in steps (`sfb.runtime.steps`)."""
        yield self
        return self.code

    def run(self, proposal: Proposal, factors: Factors, receiver: Receiver) -> Generator[Any, None, None]:
        """Do the exchange in steps, once the ranks have agreed on it otherwise."""
        problem, blocking = self.problem, proposal.blocking
        doing = Call(self._team, proposal.number, proposal.call, blocking=blocking, wire=problem.wire)
        yield from ALGORITHMS[self.algorithm].run(problem, doing, factors, receiver)
        doing.finish()
        self.rebuild_seconds = doing.rebuild_seconds


class StepwiseExchange(PersistentExchange):
    """An exchange whose steps are calls of MPI and of kernels: every algorithm, any number of nodes and bytes.

    Args:
        algorithm: The algorithm's name.
        problem: The exchange.
        team: The ranks.
        check: Raises TypeError or ValueError if the receiver cannot take the factors.
        rounded: Returns the factors as they travel in the call of a number.
    """

    def __init__(
        self,
        algorithm: str,
        problem: Problem,
        team: Team,
        check: Callable[[Factors, Receiver], None],
        rounded: Callable[[Factors, int], Factors],
    ) -> None:
        super().__init__(algorithm, problem, team)
        self._check = check
        self._rounded = rounded
        self._proposal: Proposal | None = None
        self._queued: QueuedExchange | None = None
        self._steps: Generator[Any, None, int] | None = None

    def start(
        self,
        call: str,
        digest: int,
        size: int,
        factors: Factors,
        receiver: Receiver,
        describe: Callable[[], str],
        *,
        blocking: bool,
    ) -> bool:
        """Check the factors and post a header."""
        try:
            self._check(factors, receiver)
        except (TypeError, ValueError):
            return False
        self.code = status.PENDING
        self._proposal = self._team.agree.propose(call, digest, describe, size=size, blocking=blocking)
        self._steps = self._work(self._proposal, factors, receiver)
        self._queued = None
        return True

    def steps(self) -> Generator[Any, None, int]:
        """Agree, then take the steps of the algorithm."""
        assert self._steps is not None
        return self._steps

    def test(self) -> bool:
        """Go on without waiting, as the oldest exchange under way."""
        if self._queued is None:
            self._queued = QueuedExchange(self.steps())
        self._queued.advance(oldest=True)
        if self._queued.error is not None:
            raise self._queued.error
        return self._queued.done

    def wait(self) -> int:
        """Take all steps."""
        if self._queued is None:
            return run(self.steps())
        while not self.test():
            self._queued.wait_for_step()
        return self.code

    def proposal(self, describe: Callable[[], str]) -> Proposal:
        """Return the proposal, on which the ranks have agreed but for their samples."""
        assert self._proposal is not None
        return self._proposal

    def forget(self) -> None:
        """Drop the arguments of the exchange that has ended."""
        self._proposal = self._queued = self._steps = None

    def run(self, proposal: Proposal, factors: Factors, receiver: Receiver) -> Generator[Any, None, None]:
        """Round the factors if they travel in 16 bits, and exchange them."""
        return super().run(proposal, self._rounded(factors, proposal.number), receiver)

    def _work(self, proposal: Proposal, factors: Factors, receiver: Receiver) -> Generator[Any, None, int]:
        yield None
        posted = perf_counter()
        yield from self._team.agree.steps(proposal)
        self.waited = perf_counter() - posted
        if proposal.counts is not None:
            self.code = status.UNEVEN
        else:
            yield from self.run(proposal, factors, receiver)
            self.code = status.DONE
        return self.code


def is_brief(problem: Problem, threads: int) -> bool:
    """Return whether a rank has too little work for its threads to share."""
    return threads == 1 or problem.depth * problem.shape[0] * problem.shape[1] * problem.share < _WORTH


def kernel_arguments(factors: Factors, receiver: Receiver, problem: Problem) -> tuple[Any, ...]:
    """Return what the kernels of fused and eager exchanges take of factors, receiver and rule."""
    array, state, rule = receiver.array, receiver.state, receiver.rule()
    first = state[0] if state else array
    second = state[1] if len(state) > 1 else array
    alpha, beta = rule.linear
    numbers = rule.kind, alpha, beta, rule.numbers(problem.dtype), 1 + rule.states
    return factors.u, factors.v, array, first, second, *numbers
