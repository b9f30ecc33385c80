"""Exchanges of sufficient factors: propose one to the other ranks, plan it, do it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb.collectives import ALGORITHMS, Problem
from sfb.collectives.cache import MOST, CachedReceiver, Receivers, Signature, check_factors, describe_call, normal
from sfb.collectives.eager import EagerBuffers, EagerExchange
from sfb.collectives.fused import FusedExchange
from sfb.collectives.options import Options
from sfb.collectives.persistent import PersistentExchange, StepwiseExchange
from sfb.factors import Factors
from sfb.kernels import half, status
from sfb.receiver import Assign, Receiver
from sfb.runtime.agreement import Proposal, on_all_ranks
from sfb.runtime.steps import ALONE, run
from sfb.runtime.team import Team
from sfb.tuning.plan import AUTO, Plan, choose
from sfb.tuning.profile import Profile

__all__ = ["Engine", "Exchange", "Prepared"]


class Exchange(NamedTuple):
    """How an exchange of factors went on this rank.

    Attributes:
        algorithm: The algorithm taken.
        wire_bytes: Bytes that this rank received from others, through memory or network.
        exchange_seconds: Time of communication, waiting for other ranks included.
        rebuild_seconds: Time of forming and applying the sum.
    """

    algorithm: str
    wire_bytes: int
    exchange_seconds: float
    rebuild_seconds: float


class Prepared:
    """A plan, and the persistent exchanges by which its algorithms are done.

    Args:
        plan: The plan, with all in place that its algorithms need.
        rank: This rank.
        make: Makes the persistent exchange of an algorithm.
        most: Returns the maximum over ranks of every element of an array; collective.

    Attributes:
        plan: The plan.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        make: Callable[[str], PersistentExchange],
        most: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.plan = plan
        self._rank = rank
        self._make = make
        self._most = most
        self._idle: dict[str, list[PersistentExchange]] = {}
        self._wire_bytes: dict[str, int] = {}

    @property
    def next_algorithm(self) -> str:
        """The algorithm of the next blocking call: during a trial the one that is to be timed."""
        return self.plan.algorithm if self.plan.trial is None else self.plan.trial.next

    def acquire(self, algorithm: str) -> PersistentExchange:
        """Return an exchange that is not under way."""
        idle = self._idle.setdefault(algorithm, [])
        return idle.pop() if idle else self._make(algorithm)

    def release(self, exchange: PersistentExchange) -> None:
        """Take back an exchange that has ended."""
        exchange.forget()
        self._idle[exchange.algorithm].append(exchange)

    def wire_bytes(self, algorithm: str) -> int:
        """Return the bytes that this rank receives from others."""
        known = self._wire_bytes.get(algorithm)
        if known is None:
            module = ALGORITHMS[algorithm]
            known = self._wire_bytes[algorithm] = module.wire_bytes(self.plan.problem, self._rank)
        return known

    def time(self, algorithm: str, worked: float, waited: float) -> None:
        """Record the seconds of a call of a trial; collective at the end of a round."""
        trial = self.plan.trial
        assert trial is not None
        if trial.record(algorithm, worked, waited):
            self.plan.end_round(self._most(trial.times()))


class PendingCall:
    """A call under way on this rank.

    Attributes:
        call: The user's call.
        factors: What the user passed.
        recvbuf: What the user passed.
        algorithm: As the user named it.
        blocking: Whether no other call is under way.
        began: The clock when this rank came to the call.
        cached: The cached receiver; None if the arguments are wrong.
        receiver: What takes the sum.
        signature: What has to be equal on all ranks; None if the arguments are wrong.
        prepared: The plan, where it is known before the ranks agree.
        exchange: The exchange that has been started; None if only a header has been posted.
        proposal: What has been proposed by that header.
    """

    __slots__ = (
        "algorithm",
        "began",
        "blocking",
        "cached",
        "call",
        "exchange",
        "factors",
        "prepared",
        "proposal",
        "receiver",
        "recvbuf",
        "signature",
    )

    def __init__(self, call: str, factors: Any, recvbuf: Any, algorithm: str, *, blocking: bool) -> None:
        self.began = perf_counter()
        self.call = call
        self.factors = factors
        self.recvbuf = recvbuf
        self.algorithm = algorithm
        self.blocking = blocking
        self.cached: CachedReceiver | None = None
        self.receiver: Any = recvbuf
        self.signature: Signature | None = None
        self.prepared: Prepared | None = None
        self.exchange: PersistentExchange | None = None
        self.proposal: Proposal | None = None

    @property
    def describe(self) -> Callable[[], str]:
        """What returns a description of what this rank passed."""
        return partial(describe_call, self.factors, self.recvbuf, self.algorithm)


class Engine:
    """Exchanges of factors by the ranks of a team.

    A call proposes an exchange, by `begin`, and completes it, by `complete`. Where the receiver and the plan are
    cached, a persistent exchange proposes itself, with its data; otherwise the ranks agree first, then plan.

    Args:
        team: The ranks.
        options: The options of their `sfb.Comm`.
        profile: Returns their profile; collective, and may measure.
        profile_at_hand: Returns their profile if this rank has it.
    """

    def __init__(
        self,
        team: Team,
        options: Options,
        profile: Callable[[], Profile],
        profile_at_hand: Callable[[], Profile | None],
    ) -> None:
        self._team = team
        self._options = options
        self._profile = profile
        self._profile_at_hand = profile_at_hand
        self._receivers = Receivers(options, team.owns)
        self._plans = _Plans()
        self._buffers: list[EagerBuffers] = []

    def allreduce(self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str) -> Exchange:
        """Do one exchange.

        Args:
            call: The user's call, for messages.
            factors: What the user passed; it may be wrong, as may the others.
            recvbuf: What the user passed.
            op: What the user passed.
            algorithm: What the user passed.

        Raises:
            MismatchError, TypeError, ValueError: As `sfb.Comm.Allreduce` does.
        """
        pending = self.begin(call, factors, recvbuf, op, algorithm, blocking=True)
        exchange = pending.exchange
        if exchange is not None and exchange.wait() == status.DONE:
            return self._end(pending, exchange)
        return run(self.complete(pending))

    def begin(
        self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str, *, blocking: bool, alone: bool = True
    ) -> PendingCall:
        """Check the arguments on this rank, and propose the exchange to the others.

        Arguments as of `allreduce`; and ``blocking``, whether the caller is about to wait with no other call under way;
        ``alone``, whether no other call is under way.
        """
        pending = PendingCall(call, factors, recvbuf, algorithm, blocking=blocking)
        if not self._start_cached(pending, op, alone):
            self._propose(pending, op)
        return pending

    def complete(self, pending: PendingCall) -> Generator[Any, None, Exchange]:
        """Complete a call in steps (`sfb.runtime.steps`)."""
        exchange = pending.exchange
        if exchange is not None:
            if exchange.code == status.PENDING:
                yield from exchange.steps()
            if exchange.code == status.DONE:
                return self._end(pending, exchange)
            pending.proposal = exchange.proposal(pending.describe)
            assert pending.prepared is not None
            pending.prepared.release(exchange)
        else:
            yield None
        proposal = pending.proposal
        assert proposal is not None
        posted = perf_counter()
        if proposal.counts is None:
            yield from self._team.agree.steps(proposal)
        waited = perf_counter() - posted
        prepared = yield from self._prepare(pending, proposal)
        exchange = prepared.acquire(prepared.next_algorithm if pending.blocking else prepared.plan.algorithm)
        began = perf_counter()
        yield from exchange.run(proposal, pending.factors, pending.receiver)
        pending.began = began - (posted - pending.began) - waited  # without the time for a plan
        exchange.waited = waited
        pending.prepared = prepared
        return self._end(pending, exchange)

    def plan(self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str) -> PendingCall:
        """Check the arguments on all ranks, and return the call with its plan prepared; collective, as `allreduce`."""
        pending = PendingCall(call, factors, recvbuf, algorithm, blocking=True)
        self._propose(pending, op)
        proposal = pending.proposal
        assert proposal is not None
        run(self._team.agree.steps(proposal))
        pending.prepared = run(self._prepare(pending, proposal))
        return pending

    def start(self, planned: PendingCall, samples: int, *, alone: bool) -> PendingCall:
        """Propose the exchange that `plan` has prepared, of ``samples`` samples of this rank, as `begin` does."""
        pending = PendingCall("Start", planned.factors, planned.recvbuf, planned.algorithm, blocking=False)
        pending.prepared = planned.prepared
        assert planned.prepared is not None
        assert planned.proposal is not None
        problem = planned.prepared.plan.problem
        # The samples of ranks may differ, but not from those planned.
        size = samples if problem.uniform else 0
        error: Exception | None = None
        digest = 0
        try:
            cached = planned.cached
            if cached is None or not cached.same(pending.recvbuf):
                cached = planned.cached = self._receivers.checked(pending.recvbuf)
            pending.receiver = receiver = cached.receiver(pending.recvbuf)
            settings = receiver.settings
            if planned.signature is None or planned.signature.key != settings:
                receiver.check()
                planned.signature = Signature(settings, (planned.proposal.number, normal(settings)))
            digest = planned.signature.digest("Start")
            if planned.factors.shape != problem.shape or len(planned.factors) != samples:
                raise ValueError(f"factors were {problem.shape} with S={samples} when the plan was made")
            exchange = planned.prepared.acquire(planned.prepared.plan.algorithm)
            if (alone or exchange.concurrent) and exchange.start(
                "Start", digest, size, planned.factors, receiver, pending.describe, blocking=False
            ):
                pending.exchange = exchange
                return pending
            planned.prepared.release(exchange)
            cached = self._receivers.checked(pending.recvbuf)
            check_factors(planned.factors, cached, receiver, MPI.SUM, self._options.wire)
        except Exception as caught:  # the other ranks wait to hear of it
            error = caught
        pending.proposal = self._team.agree.propose("Start", digest, pending.describe, size=size, error=error)
        return pending

    def _start_cached(self, pending: PendingCall, op: MPI.Op, alone: bool) -> bool:
        """Start the persistent exchange of a call whose receiver and plan are cached; return whether there is one."""
        factors, recvbuf, algorithm = pending.factors, pending.recvbuf, pending.algorithm
        cached = self._receivers.find(recvbuf)
        try:
            if cached is None or op is not MPI.SUM or type(factors) is not Factors or not cached.same(recvbuf):
                return False
            receiver = cached.receiver(recvbuf)
            signature = cached.known(algorithm, receiver) or cached.signature(algorithm, receiver)
            samples = len(factors.u)
            prepared = self._plans.find(signature.key, samples)
        except Exception:  # `_propose` finds it, too, and tells the other ranks
            return False
        if prepared is None:
            return False
        exchange = prepared.acquire(prepared.next_algorithm if pending.blocking else prepared.plan.algorithm)
        pending.cached, pending.receiver, pending.signature = cached, receiver, signature
        digest = signature.digest(pending.call)
        if (alone or exchange.concurrent) and exchange.start(
            pending.call, digest, samples, factors, receiver, pending.describe, blocking=pending.blocking
        ):
            pending.prepared, pending.exchange = prepared, exchange
            return True
        prepared.release(exchange)
        return False

    def _propose(self, pending: PendingCall, op: MPI.Op) -> None:
        """Check the arguments on this rank, and post a header."""
        error: Exception | None = None
        digest = size = 0
        try:
            cached = pending.cached = self._receivers.checked(pending.recvbuf)
            receiver = pending.receiver = cached.receiver(pending.recvbuf)
            check_factors(pending.factors, cached, receiver, op, self._options.wire)
            signature = pending.signature = cached.signature(pending.algorithm, receiver)
            digest = signature.digest(pending.call)
            size = len(pending.factors)
        except Exception as caught:  # the other ranks wait to hear of it
            error = caught
        pending.proposal = self._team.agree.propose(
            pending.call, digest, pending.describe, size=size, error=error, blocking=pending.blocking
        )

    def _prepare(self, pending: PendingCall, proposal: Proposal) -> Generator[Any, None, Prepared]:
        """Return the plan of a call on which the ranks agree, in steps, with everything that it needs in place."""
        if pending.prepared is not None and pending.signature is None:  # of `start`
            return pending.prepared
        cached, signature = pending.cached, pending.signature
        assert cached is not None
        assert signature is not None
        size = proposal.size if proposal.counts is None else proposal.counts.tobytes()
        prepared = self._plans.find(signature.key, size)
        if prepared is None:
            yield ALONE
            prepared = self._new_plan(pending, proposal)
            self._plans.add(signature.key, size, prepared)
        if not cached.complete:
            yield ALONE
            with on_all_ranks(self._team.world, proposal.call):
                pending.receiver.prepare(np.zeros if cached.block is None else self._team.share)
        return prepared

    def _new_plan(self, pending: PendingCall, proposal: Proposal) -> Prepared:
        """Choose the algorithm and allocate; every rank comes here with the same arguments but for S."""
        team, receiver, cached, call = self._team, pending.receiver, pending.cached, proposal.call
        assert cached is not None
        counts = np.full(team.size, proposal.size, np.int64) if proposal.counts is None else proposal.counts
        problem = Problem(
            shape=cached.shape,
            dtype=cached.dtype,
            counts=counts,
            node_of=team.node_of,
            passes=receiver.passes,
            sharing=team.sharing,
            shared=cached.block is not None,
            assigns=isinstance(receiver, Assign),
            max_bytes=self._options.max_bytes,
            whole=receiver.whole,
            wire=self._options.wire,
        )
        algorithm = pending.algorithm
        # All ranks find the same here.
        if receiver.whole and (algorithm not in (AUTO, "broadcast", "node") or not problem.fits):
            raise ValueError(
                f'max_norm needs the factors of all ranks at once: algorithm {algorithm!r} must be "auto", '
                f'"broadcast" or "node", and their bytes within max_bytes, {problem.max_bytes}'
            )
        with on_all_ranks(team.world, call):
            team.load_kernels()
        if algorithm == AUTO:
            plan = choose(problem, AUTO, self._profile(), trials=not self._options.reproducible)
        else:
            plan = choose(problem, algorithm, self._profile_at_hand())
        # Each step is collective and can fail on one rank: the ranks agree on it before the next.
        for name in plan.trial.algorithms if plan.trial is not None else [plan.algorithm]:
            with on_all_ranks(team.world, call):
                ALGORITHMS[name].prepare(problem, team)
        # The kernels' memory too: during the exchange a rank that has none could not tell the others.
        with on_all_ranks(team.world, call):
            kernels.scratch_for(problem.depth, receiver.array)
        return Prepared(plan, team.rank, partial(self._persistent, problem, receiver.plain), team.most)

    def _persistent(self, problem: Problem, plain: bool, algorithm: str) -> PersistentExchange:
        """Make the persistent exchange of an algorithm, for receivers that are ``plain`` or not."""
        team = self._team
        if plain and FusedExchange.serves(algorithm, problem, team):
            return FusedExchange(algorithm, problem, team)
        if plain and EagerExchange.serves(algorithm, problem, team):
            return EagerExchange(algorithm, problem, team, self._buffers)
        return StepwiseExchange(algorithm, problem, team, self._check, self._rounded)

    def _check(self, factors: Factors, receiver: Receiver) -> None:
        """Raise TypeError or ValueError if a receiver cannot take these factors."""
        recvbuf = receiver.array if type(receiver) is Assign else receiver
        check_factors(factors, self._receivers.checked(recvbuf), receiver, MPI.SUM, self._options.wire)

    def _rounded(self, factors: Factors, number: int) -> Factors:
        """Return the factors as they travel in call ``number``."""
        wire, seed = self._options.wire, self._options.seed
        if wire is None:
            return factors
        arrays = []
        for which, array in enumerate((factors.u, factors.v)):
            own = None if seed is None else hash((seed, number, self._team.rank, which))
            packed, rounded = np.empty(array.shape, np.uint16), np.empty_like(array)
            half.pack(array, packed, wire, own)
            half.unpack(packed, rounded, wire)
            arrays.append(rounded)
        return Factors(*arrays)

    def _end(self, pending: PendingCall, exchange: PersistentExchange) -> Exchange:
        """Finish a call whose exchange has been done."""
        prepared = pending.prepared
        assert prepared is not None
        pending.receiver.end()
        seconds, rebuild = perf_counter() - pending.began, exchange.rebuild_seconds
        algorithm, waited = exchange.algorithm, exchange.waited
        prepared.release(exchange)
        if pending.blocking and prepared.plan.trial is not None:
            prepared.time(algorithm, seconds - waited, waited)
        return Exchange(algorithm, prepared.wire_bytes(algorithm), seconds - rebuild, rebuild)


class _Plans:
    """Plans by the keys of signatures and the samples of ranks, as many as are kept; the same on all ranks."""

    def __init__(self) -> None:
        self._plans: dict[object, Prepared] = {}

    def find(self, key: tuple[object, ...], samples: object) -> Prepared | None:
        """Return the plan for a key, and for S that is the same on all ranks, or S of all ranks as bytes."""
        return self._plans.get((key, samples))

    def add(self, key: tuple[object, ...], samples: object, prepared: Prepared) -> None:
        """Keep a plan, in place of the oldest if there are too many."""
        if len(self._plans) >= MOST:
            self._plans.pop(next(iter(self._plans)))
        self._plans[key, samples] = prepared
