"""The engine of exchanges: propose one to the other ranks, plan it, do it."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb.collectives.algorithms import algorithms_for
from sfb.collectives.cache import CachedReceiver, Receivers, Signature, check_factors, normal
from sfb.collectives.eager import EagerBuffers, EagerExchange
from sfb.collectives.fused import FusedExchange
from sfb.collectives.options import Options
from sfb.collectives.persistent import PendingCall, PersistentExchange, Prepared
from sfb.collectives.plans import Plans, PlansOfKey
from sfb.collectives.problem import Problem, Spread
from sfb.collectives.sparse import joined_size, room_for, split_sizes
from sfb.collectives.stepwise import StepwiseExchange
from sfb.factors import Factors
from sfb.kernels import half, sparse, status
from sfb.receiver import Assign
from sfb.runtime.agreement import on_all_ranks
from sfb.runtime.errors import RankFailedError, report
from sfb.runtime.finite import not_finite
from sfb.runtime.seals import DamagedMessageError
from sfb.runtime.steps import ALONE, run
from sfb.runtime.team import Team
from sfb.trace.calls import exchange_began, exchange_ended
from sfb.trace.now import NOW
from sfb.trace.spans import span
from sfb.tuning.lookup import Profiles
from sfb.tuning.plan import AUTO, choose

__all__ = ["Engine", "Exchange"]


class Exchange(NamedTuple):
    """How an exchange of factors went on this rank.

    Attributes:
        algorithm: The algorithm taken.
        wire_bytes: Bytes that this rank received from others, through memory or network.
        exchange_seconds: Seconds of communication, including the wait for other ranks.
        rebuild_seconds: Seconds of forming and applying the sum.

    >>> from mpi4py import MPI
    >>> import numpy as np, sfb
    >>> with sfb.Comm(MPI.COMM_SELF) as comm:
    ...     comm.Allreduce(sfb.Factors(np.ones((2, 3)), np.ones((2, 4))), np.empty((3, 4)))
    ...     exchange = comm.last_exchange
    >>> exchange.wire_bytes  # a rank alone
    0
    """

    algorithm: str
    wire_bytes: int
    exchange_seconds: float
    rebuild_seconds: float


class Engine:
    """Exchanges of factors by the ranks of a team.

    A call proposes an exchange, by `begin`, and completes it, by `complete`. If the receiver and the plan are cached, a
    persistent exchange starts at once; otherwise the ranks agree first, then plan.

    Args:
        team: The ranks.
        options: The options of their `sfb.Comm`.
        profiles: The profile of their machine.
    """

    def __init__(self, team: Team, options: Options, profiles: Profiles) -> None:
        self._team = team
        self._options = options
        self._profiles = profiles
        self._receivers = Receivers(options, team.owns)
        self._plans = Plans()
        self._buffers: list[EagerBuffers] = []
        # For each array that calls under way change, by identity, the number of these calls.
        self._targets: dict[int, int] = {}
        self._broken: BaseException | None = None

    def allreduce(self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str) -> Exchange:
        """Do one exchange.

        Args:
            call: The user's call, for messages.
            factors: The user's argument, right or wrong, like the following.
            recvbuf: The user's argument.
            op: The user's argument.
            algorithm: The user's argument.

        Raises:
            MismatchError, TypeError, ValueError: As `sfb.Comm.Allreduce` does.
        """
        pending = PendingCall(call, factors, recvbuf, algorithm, blocking=True)
        NOW.call = [call, self, pending, None]
        try:
            if NOW.on:
                exchange_began(self, pending)
            if not self._start_cached(pending, op, True):
                self._propose(pending, op)
            elif (exchange := pending.exchange) is not None:
                try:
                    exchange.wait()
                except BaseException as error:
                    self._note(error, exchange.agreed, exchange.changed)
                    raise
                if exchange.code == status.DONE:
                    return self._end(pending, exchange)
            return run(self.complete(pending))
        finally:
            NOW.call = None

    @property
    def position(self) -> tuple[str, int]:
        """The label of the communicator, and the number of its last call."""
        return self._team.label, self._team.agree.number

    def begin(self, pending: PendingCall, op: MPI.Op, *, alone: bool = True) -> PendingCall:
        """Check the arguments of a call on this rank, and propose it to the others.

        Args:
            pending: The call.
            op: The user's argument.
            alone: Whether no other call is under way.
        """
        if NOW.on:
            exchange_began(self, pending)
        pending.after = not alone and _target(pending) in self._targets
        if pending.after or not self._start_cached(pending, op, alone):
            self._propose(pending, op)
        return pending

    def completed(self, pending: PendingCall) -> Exchange | None:
        """Return how a call went if its exchange was done as it began, else None."""
        exchange = pending.exchange
        return self._end(pending, exchange) if exchange is not None and exchange.code == status.DONE else None

    def complete(self, pending: PendingCall) -> Generator[Any, None, Exchange]:
        """Complete a call in steps (`sfb.runtime.steps`)."""
        done, exchange = self.completed(pending), pending.exchange
        if done is not None:
            return done
        targets, target = self._targets, _target(pending)
        targets[target] = targets.get(target, 0) + 1
        agreed = False
        try:
            if exchange is None:
                yield None
            else:
                if exchange.code == status.PENDING:
                    yield from exchange.steps()
                if exchange.code == status.DONE:
                    return self._end(pending, exchange)
                exchange.hand_over(pending)
                assert pending.prepared is not None
                pending.prepared.release(exchange)
                exchange = None
            posted = perf_counter()
            if pending.counts is None:
                yield from self._team.agree.steps(pending)
            waited = perf_counter() - posted
            # A call of a persistent request has its plan. A plan found by this rank's own S may not be that of all.
            prepared = pending.prepared if pending.signature is None else (yield from self._prepare(pending))
            assert prepared is not None
            pending.prepared = prepared
            if pending.after:
                yield ALONE
            agreed = True
            exchange = prepared.acquire(blocking=pending.blocking)
            began = perf_counter()
            yield from exchange.run(pending)
            pending.planning = began - posted - waited
            pending.began += pending.planning  # leaves out the seconds spent on a plan
            exchange.waited = waited
            return self._end(pending, exchange)
        except BaseException as error:
            begun = exchange is not None and exchange.agreed
            self._note(error, agreed or begun, agreed or (exchange is not None and exchange.changed))
            raise
        finally:
            targets[target] -= 1
            if not targets[target]:
                del targets[target]

    def plan(self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str) -> PendingCall:
        """Check the arguments on all ranks, and return the call with its plan prepared; collective, as `allreduce`."""
        pending = PendingCall(call, factors, recvbuf, algorithm, blocking=True)
        self._propose(pending, op)
        run(self._team.agree.steps(pending))
        pending.prepared = run(self._prepare(pending))
        pending.kind, pending.planned = pending.receiver.kind, pending.signature
        return pending

    def start(self, planned: PendingCall, samples: int, *, alone: bool, brief: bool = False) -> PendingCall:
        """Propose the exchange that `plan` has prepared for ``samples`` samples of this rank, as `begin` does.

        If it is ``brief``, look for the other ranks a moment.
        """
        prepared, factors, recvbuf = planned.prepared, planned.factors, planned.recvbuf
        assert prepared is not None
        problem = planned.problem or prepared.plan.problem
        pending = PendingCall("Start", factors, recvbuf, planned.algorithm, blocking=False)
        pending.prepared, pending.brief, pending.problem = prepared, brief, planned.problem
        if NOW.on:
            exchange_began(self, pending)
        # The ranks compare S only if the plan has the same S for all. Each checks its own S.
        pending.size = samples if problem.uniform else 0
        try:
            self._check_whole()
            if planned.cached is None or not planned.cached.same(recvbuf):
                planned.cached = self._receivers.checked(recvbuf)
            pending.cached = planned.cached
            receiver = pending.receiver = planned.cached.receiver(recvbuf)
            settings = receiver.settings
            if planned.signature is None or planned.signature.key != settings:
                receiver.check()
                if receiver.kind != planned.kind:
                    raise ValueError(f"the settings changed what the plan rests on, make another one: {receiver!r}")
                planned.signature = Signature(settings, (planned.number, normal(settings)))
            pending.digest = planned.signature.digest("Start") + receiver.steps
            if factors.shape != problem.shape or len(factors) != samples or factors.sparse != planned.sparse:
                form = "CSR" if planned.sparse else "dense"
                raise ValueError(f"factors were {problem.shape} with {form} v and S={samples} when the plan was made")
            pending.after = not alone and _target(pending) in self._targets
            if planned.sparse:  # each start looks for the plan of its non-zeros
                pending.sparse, pending.signature = True, planned.planned
                self._check(pending)
                pending.size = joined_size(samples, factors.nonzeros)
            elif not (pending.after or self._holds_nan(factors)) and self._start(pending, prepared, alone):
                return pending
            else:
                self._check(pending)
        except Exception as caught:  # the other ranks wait to hear of it
            pending.error = caught
        self._team.agree.propose(pending)
        return pending

    def _start_cached(self, pending: PendingCall, op: MPI.Op, alone: bool) -> bool:
        """Start the persistent exchange of a call whose receiver and plan are cached; return whether there is one."""
        factors, recvbuf = pending.factors, pending.recvbuf
        cached = self._receivers.find(recvbuf)
        try:
            if cached is None or op is not MPI.SUM or type(factors) is not Factors or not cached.same(recvbuf):
                return False
            if type(factors.v) is not np.ndarray:  # CSR: the ranks agree on non-zeros first
                return False
            receiver = pending.receiver = cached.receiver(recvbuf)
            signature = cached.known(pending.algorithm, receiver) or cached.signature(pending.algorithm, receiver)
            pending.size = len(factors.u)
            if self._holds_nan(factors):
                return False
        except Exception:  # `_propose` meets the same error, and tells the other ranks
            return False
        plans = self._plans.of(signature)
        prepared = plans.unlike or plans.get(pending.size)
        if prepared is None:
            return False
        pending.cached, pending.signature = cached, signature
        pending.digest = signature.digest(pending.call) + receiver.steps
        return self._start(pending, prepared, alone)

    @staticmethod
    def _start(pending: PendingCall, prepared: Prepared, alone: bool) -> bool:
        """Start the exchange of a plan, if it takes the arguments of a call."""
        exchange = prepared.acquire(blocking=pending.blocking)
        if (alone or exchange.concurrent) and exchange.start(pending):
            pending.prepared, pending.exchange = prepared, exchange
            return True
        prepared.release(exchange)
        return False

    def _propose(self, pending: PendingCall, op: MPI.Op) -> None:
        """Check the arguments on this rank, and post a header."""
        try:
            self._check_whole()
            cached = pending.cached = self._receivers.checked(pending.recvbuf)
            receiver = pending.receiver = cached.receiver(pending.recvbuf)
            check_factors(pending.factors, cached, receiver, op, self._options)
            pending.sparse = pending.factors.sparse
            pending.signature = cached.signature(pending.algorithm, receiver, sparse=pending.sparse)
            pending.digest = pending.signature.digest(pending.call) + receiver.steps
            pending.size = len(pending.factors)
            if pending.sparse:
                pending.size = joined_size(pending.size, pending.factors.nonzeros)
        except Exception as caught:  # the other ranks wait to hear of it
            pending.error = caught
        self._team.agree.propose(pending)

    def _prepare(self, pending: PendingCall) -> Generator[Any, None, Prepared]:
        """Return the plan, ready for exchanges, of a call on which the ranks agree; in steps."""
        cached, signature = pending.cached, pending.signature
        assert cached is not None
        assert signature is not None
        counts = np.full(self._team.size, pending.size, np.int64) if pending.counts is None else pending.counts
        if pending.sparse:
            counts, pending.nonzeros = split_sizes(counts)
        plans = self._plans.of(signature)
        size, most, spread = self._size(pending, cached, counts, plans)
        prepared = plans.get(size)
        if prepared is None:
            yield ALONE
            plans = self._plans.of(signature)  # older calls may have made the plan, or dropped others of its key
            prepared = plans.get(size)
        if prepared is None:
            with span("plan", "compile"):
                prepared = self._new_plan(pending, self._problem(pending, cached, most, spread))
            self._plans.add(plans, size, prepared)
        if not cached.complete:
            yield ALONE
            with on_all_ranks(self._team.world, pending.call):
                pending.receiver.prepare(np.zeros if cached.block is None else self._team.share)
        plans.unlike = prepared if spread is not None and self._is_eager(prepared) else None
        if pending.sparse or spread is not None:
            pending.problem = prepared.plan.problem.of_call(counts, pending.nonzeros)
        return prepared

    def _size(
        self, pending: PendingCall, cached: CachedReceiver, counts: np.ndarray, plans: PlansOfKey
    ) -> tuple[object, np.ndarray, Spread | None]:
        """Return by what the plan of a call is kept among ``plans``, the S for which it is made, and its spread."""
        room = None if pending.nonzeros is None else room_for(int(pending.nonzeros.sum()))
        first = int(counts[0])
        if (counts == first).all():
            return (first if room is None else (first, room)), counts, None
        spread = Spread.of(counts)
        most, size = spread.counts(len(counts)), (spread, room)
        if size not in plans and not self._problem(pending, cached, most).fits:
            return (counts.tobytes(), room), counts, None  # in blocks, of as much memory as there may be
        return size, most, spread

    def _is_eager(self, prepared: Prepared) -> bool:
        """Return whether the calls that a plan serves may send their payloads beside their headers."""
        plan = prepared.plan
        return plan.trial is None and EagerExchange.serves(plan.algorithm, plan.problem, self._team)

    def _problem(
        self, pending: PendingCall, cached: CachedReceiver, counts: np.ndarray, spread: Spread | None = None
    ) -> Problem:
        """Return the exchange of a call with S of each rank; equal on all ranks."""
        team, receiver, nonzeros = self._team, pending.receiver, pending.nonzeros
        return Problem(
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
            nonzeros=nonzeros,
            room=0 if nonzeros is None else room_for(int(nonzeros.sum())),
            skips_zeros=pending.sparse and receiver.skips_zeros,
            spread=spread,
        )

    def _new_plan(self, pending: PendingCall, problem: Problem) -> Prepared:
        """Choose an algorithm and prepare it; all ranks pass the same arguments."""
        team, receiver, call = self._team, pending.receiver, pending.call
        algorithm, staging = pending.algorithm, team.staging.block
        # All ranks raise this, as their arguments are equal.
        if receiver.whole and (algorithm not in (AUTO, "broadcast", "node") or not problem.fits):
            raise ValueError(
                f'max_norm needs the factors of all ranks at once: algorithm {algorithm!r} must be "auto", '
                f'"broadcast" or "node", and their bytes within max_bytes, {problem.max_bytes}'
            )
        if pending.sparse and algorithm in ("broadcast", "node") and not problem.fits:
            raise ValueError(
                f"with CSR v algorithm {algorithm!r} takes factors of all ranks within max_bytes, {problem.max_bytes}; "
                f'they need {problem.most_bytes} bytes: name "auto" or "dense"'
            )
        with on_all_ranks(team.world, call):
            team.load_kernels(half=self._options.wire is not None, sparse=pending.sparse)
        algorithms = algorithms_for(problem)
        if algorithm == AUTO:
            profile = self._profiles.require(team)
            plan = choose(problem, algorithms, AUTO, profile, trials=not self._options.reproducible)
        else:
            plan = choose(problem, algorithms, algorithm, self._profiles.at_hand)
        # Each step is collective and may fail on one rank: the ranks agree on its success before the next.
        for name in plan.trial.algorithms if plan.trial is not None else [plan.algorithm]:
            with on_all_ranks(team.world, call):
                algorithms[name].prepare(problem, team)
        # The scratch of kernels, too: a rank without it could not tell the others during the exchange.
        with on_all_ranks(team.world, call):
            if pending.sparse:
                sparse.reserve(problem.depth, problem.dtype)
            else:
                kernels.scratch_for(problem.depth, receiver.array)
        if team.staging.block is not staging:
            self._plans.unbind()
        return Prepared(plan, team, partial(self._persistent, problem, receiver.plain))

    def _persistent(self, problem: Problem, plain: bool, algorithm: str) -> PersistentExchange:
        """Make a persistent exchange by an algorithm, for receivers that are ``plain`` or not."""
        team = self._team
        plain = plain and problem.nonzeros is None
        if plain and FusedExchange.serves(algorithm, problem, team):
            return FusedExchange(algorithm, problem, team)
        if plain and EagerExchange.serves(algorithm, problem, team):
            return EagerExchange(algorithm, problem, team, self._buffers)
        return StepwiseExchange(algorithm, problem, team, self._check, self._rounded)

    def _note(self, error: BaseException, agreed: bool, changed: bool) -> None:
        """Note an exception of a call; if it came in the midst of an exchange, later calls tell all ranks so.

        Args:
            error: The exception.
            agreed: Whether the ranks have agreed on the call: all raise what comes before.
            changed: Whether the receiver may have changed.
        """
        if isinstance(error, RankFailedError):
            error.changed = changed
        if agreed or not isinstance(error, Exception) or isinstance(error, DamagedMessageError):
            self._broken = error
            self._receivers = Receivers(self._options, self._team.owns)  # so that every call is proposed

    def _check_whole(self) -> None:
        """Raise RuntimeError if an exception has ended an exchange in the midst."""
        if self._broken is not None:
            kind, text = report(self._broken)
            raise RuntimeError(
                f"the communicator is broken, since {kind} ended an earlier exchange ({text}): free it and use it anew"
            )

    def _check(self, pending: PendingCall) -> None:
        """Raise TypeError or ValueError if the receiver of a call cannot take its factors."""
        cached = self._receivers.checked(pending.recvbuf)
        check_factors(pending.factors, cached, pending.receiver, MPI.SUM, self._options)

    def _holds_nan(self, factors: Factors) -> bool:
        """Return whether dense factors hold NaN or infinity where that is an error."""
        return self._options.check_finite and max(not_finite(factors.u), not_finite(factors.v)) >= 0

    def _rounded(self, factors: Factors, number: int) -> Factors:
        """Return the factors as they travel in call ``number``: rounded if that is in 16 bits."""
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
        """Finish a call whose exchange is done, and return a report."""
        prepared = pending.prepared
        assert prepared is not None
        pending.receiver.end()
        seconds, rebuild = perf_counter() - pending.began, exchange.rebuild_seconds
        prepared.release(exchange)
        if pending.blocking and prepared.plan.trial is not None:
            prepared.time(exchange.algorithm, seconds - exchange.waited, exchange.waited)
        wire_bytes = prepared.wire_bytes(exchange.algorithm, pending.problem)
        if NOW.on:
            exchange_ended(self, pending, exchange, seconds, wire_bytes)
        return Exchange(exchange.algorithm, wire_bytes, seconds - rebuild, rebuild)


def _target(pending: PendingCall) -> int:
    """Return the identity of the array that a call changes."""
    return id(getattr(pending.recvbuf, "array", pending.recvbuf))
