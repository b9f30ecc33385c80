"""Persistent exchanges of factors: prepared once, started as often as wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from time import perf_counter
from typing import Any

import numpy as np

from sfb.collectives.algorithms import algorithms_for
from sfb.collectives.cache import CachedReceiver, Signature, describe_call
from sfb.collectives.call import Call
from sfb.collectives.options import Options
from sfb.collectives.problem import Problem
from sfb.kernels import status
from sfb.runtime.agreement import Proposal
from sfb.runtime.team import Team
from sfb.tuning.plan import Plan

__all__ = ["KernelExchange", "PendingCall", "PersistentExchange", "Prepared", "is_brief", "kernel_arguments"]

# Multiplications from which the threads of a rank share the work. A fused or eager exchange has one thread.
_WORTH = 1 << 21


class PendingCall(Proposal):
    """A call of the user under way on this rank, and its proposal to the other ranks.

    Attributes:
        after: Whether an older call under way has the same receiver, which takes the sum of that call first.
        began: The time at which this rank began the call.
        factors: The user's first argument, right or wrong.
        recvbuf: The user's second argument, right or wrong.
        algorithm: The name that the user passed.
        cached: The cached receiver, if the arguments are right.
        receiver: The receiver of the sum.
        signature: The part of the arguments that has to be equal on all ranks, if they are right.
        prepared: The plan, once it is known.
        exchange: The persistent exchange that has started; None if this rank has posted a header alone.
        kind: What the plan of a persistent request rests on, `sfb.receiver.Receiver.kind`.
        sparse: Whether v is CSR; ``size`` then stands for non-zeros, too (`sfb.collectives.sparse.joined_size`).
        nonzeros: The non-zeros of all ranks, once they agree, if v is CSR.
        problem: The exchange of this call, where its plan serves others, too: with unlike S, or with CSR v.
        planning: Seconds spent on a plan meanwhile.
        planned: The signature by which a persistent request with CSR v looks for the plan of each start.
    """

    after = brief = sparse = False
    planning = 0.0
    nonzeros: np.ndarray | None = None
    problem: Problem | None = None
    planned: Signature | None = None
    kind: tuple[object, ...] = ()
    cached: CachedReceiver | None = None
    receiver: Any = None
    signature: Signature | None = None
    prepared: Prepared | None = None
    exchange: PersistentExchange | None = None

    def __init__(self, call: str, factors: Any, recvbuf: Any, algorithm: str, *, blocking: bool) -> None:
        self.began = perf_counter()
        self.call = call
        self.blocking = blocking
        self.factors = factors
        self.recvbuf = recvbuf
        self.algorithm = algorithm

    def describe(self) -> str:
        """Describe what this rank passed, for messages."""
        options = Options() if self.cached is None else self.cached.options
        return describe_call(self.factors, self.recvbuf, self.algorithm, options)


class PersistentExchange(ABC):
    """An exchange of factors by one algorithm, for one problem: `start`, then `test` or `wait`, as often as wanted.

    `start` proposes the exchange to the other ranks; a fused or eager exchange sends its data, too. The exchange ends
    with a status: `DONE`; or another one, with the receiver unchanged, if the ranks do not all start this exchange. The
    call then goes on from there after `hand_over`.

    Args:
        algorithm: The algorithm's name.
        problem: The exchange.
        team: The ranks.

    Attributes:
        algorithm: The algorithm's name.
        problem: The exchange.
        code: The status (`sfb.kernels.status`), `PENDING` while the exchange is under way.
        waited: Seconds that this rank waited for the others to agree, in the last exchange.
        rebuild_seconds: Seconds that this rank spent in forming and applying the sum, in the last exchange.
        concurrent: Whether other exchanges may be under way when this one starts.
        agreed: Whether the ranks have agreed on the exchange under way, as far as this one tells.
    """

    concurrent = agreed = True

    def __init__(self, algorithm: str, problem: Problem, team: Team) -> None:
        self.algorithm = algorithm
        self.problem = problem
        self.code: int = status.DONE
        self.waited = 0.0
        self.rebuild_seconds = 0.0
        self._team = team

    @property
    def changed(self) -> bool:
        """Whether the exchange under way may have changed its receiver on this node."""
        return self.agreed

    @abstractmethod
    def start(self, pending: PendingCall) -> bool:
        """Propose the exchange; return False, with nothing proposed, if the arguments of the call do not fit."""

    @abstractmethod
    def test(self) -> bool:
        """Go on without waiting; return whether the exchange has ended."""

    @abstractmethod
    def wait(self) -> int:
        """Wait for the end of the exchange, and return its status."""

    @abstractmethod
    def hand_over(self, pending: PendingCall) -> None:
        """Let a call whose exchange ended with another status than `DONE` go on as a proposal."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the arguments of the last exchange: their owner decides how long they live."""

    def Test(self) -> bool:
        """Do what `test` does, by the name of an MPI request."""
        return self.test()

    def Wait(self) -> None:
        """Do what `wait` does, by the name of an MPI request."""
        self.wait()

    def steps(self) -> Generator[Any, None, Any]:
        """Wait for the end of the exchange, in steps (`sfb.runtime.steps`)."""
        yield self

    def run(self, pending: PendingCall) -> Generator[Any, None, None]:
        """Do the exchange of a call on which the ranks agree already, in steps."""
        problem = pending.problem or self.problem
        call = Call(self._team, pending.number, pending.call, blocking=pending.blocking, wire=problem.wire)
        receiver = call.guard(pending.receiver)
        yield from algorithms_for(problem)[self.algorithm].run(problem, call, pending.factors, receiver)
        call.finish()
        self.rebuild_seconds = call.rebuild_seconds


class KernelExchange(PersistentExchange):
    """A fused or eager exchange: a call of a kernel, and further calls of it while other ranks are missing."""

    def __init__(self, algorithm: str, problem: Problem, team: Team) -> None:
        super().__init__(algorithm, problem, team)
        self._name, self._number = "", 0
        self._arguments: tuple[Any, ...] = ()

    def test(self) -> bool:
        """Go on without waiting."""
        return self.code != status.PENDING or self._advance(0)

    def forget(self) -> None:
        """Drop the arguments of the last exchange."""
        self._arguments = ()

    @abstractmethod
    def _advance(self, spins: int) -> bool:
        """Call the kernel, which looks ``spins`` times for other ranks; return whether the exchange has ended."""


class Prepared:
    """A plan whose algorithms are prepared, and persistent exchanges by them.

    Args:
        plan: The plan.
        team: The ranks.
        make: Makes a persistent exchange by an algorithm.

    Attributes:
        plan: The plan.
    """

    def __init__(self, plan: Plan[Problem], team: Team, make: Callable[[str], PersistentExchange]) -> None:
        self.plan = plan
        self._team = team
        self._make = make
        self._idle: dict[str, list[PersistentExchange]] = {}
        self._wire_bytes: dict[str, int] = {}

    def acquire(self, *, blocking: bool) -> PersistentExchange:
        """Return an exchange for the next call: by the algorithm to be timed if the call blocks during a trial."""
        trial = self.plan.trial
        algorithm = self.plan.algorithm if trial is None or not blocking else trial.next
        idle = self._idle.setdefault(algorithm, [])
        return idle.pop() if idle else self._make(algorithm)

    def release(self, exchange: PersistentExchange) -> None:
        """Take back an exchange that has ended."""
        exchange.forget()
        self._idle.setdefault(exchange.algorithm, []).append(exchange)

    def unbind(self) -> None:
        """Drop what refers to the node's staging memory, which other memory has replaced."""
        self._idle.clear()
        self.plan.problem.memo.clear()

    def wire_bytes(self, algorithm: str, problem: Problem | None = None) -> int:
        """Return the bytes that this rank receives from others in an exchange: of ``problem``, or the plan's."""
        if problem is not None:
            return algorithms_for(problem)[algorithm].wire_bytes(problem, self._team.rank)
        known = self._wire_bytes.get(algorithm)
        if known is None:
            module = algorithms_for(self.plan.problem)[algorithm]
            known = self._wire_bytes[algorithm] = module.wire_bytes(self.plan.problem, self._team.rank)
        return known

    def time(self, algorithm: str, worked: float, waited: float) -> None:
        """Record the seconds of a blocking call during a trial; collective at the end of a round."""
        trial = self.plan.trial
        if trial is not None and trial.record(algorithm, worked, waited):
            self.plan.end_round(self._team.most(trial.times()))


def is_brief(problem: Problem, threads: int) -> bool:
    """Return whether the work of a rank is too little for its threads to share."""
    return threads == 1 or problem.depth * problem.shape[0] * problem.shape[1] * problem.share < _WORTH


def kernel_arguments(pending: PendingCall, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return the arguments of fused and eager kernels that the factors, the receiver and its rule give.

    Raises:
        TypeError: The factors are not plain arrays.
    """
    factors, receiver = pending.factors, pending.receiver
    u, v, array, state, rule = factors.u, factors.v, receiver.array, receiver.state, receiver.rule()
    if type(u) is not np.ndarray or type(v) is not np.ndarray:  # a masked array, say
        raise TypeError("factors must be plain arrays")
    first = state[0] if state else array
    second = state[1] if len(state) > 1 else array
    return u, v, array, first, second, rule.kind, *rule.linear, rule.numbers(dtype), 1 + rule.states
