"""Exchanges of sufficient factors: how the ranks of a call agree, take turns at algorithms, and repeat the last one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb.collectives import ALGORITHMS, PARCELS, Problem, dense
from sfb.collectives.cache import (
    MOST,
    NO_PARCEL,
    Again,
    Opened,
    Options,
    Parcel,
    Seen,
    Signature,
    Timed,
    check_factors,
    describe_call,
    normal,
)
from sfb.collectives.call import Call
from sfb.collectives.eager import Carried
from sfb.collectives.fused import Repeated, brief
from sfb.factors import Factors
from sfb.kernels import half
from sfb.receiver import Assign, Receiver
from sfb.runtime.agreement import Meeting, on_all_ranks
from sfb.runtime.steps import ALONE, POSTED, run
from sfb.runtime.team import Team
from sfb.runtime.windows import find
from sfb.tuning.plan import AUTO, Plan, choose
from sfb.tuning.profile import Profile

__all__ = ["Exchange", "Exchanges"]

_NOT_DONE = (None, None)  # what a repetition comes to that cannot be


class Exchange(NamedTuple):
    """How the last `Comm.Allreduce` of factors went on this rank.

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


class Exchanges:
    """Exchanges of factors by the ranks of a team, and what is remembered from one to the next.

    Args:
        team: The ranks.
        options: What their `sfb.Comm` was made with.
        profile: What returns their profile; collective, and may measure.
        profile_at_hand: What returns it if this rank has it.
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
        self._plans: dict[object, Plan] = {}
        self._seen: dict[int, Seen] = {}
        self._timed: Timed | None = None

    def reduce(
        self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str
    ) -> tuple[str, int, float, float]:
        """Do one exchange, waiting; what `steps` does, with less ado. Return the values of an `Exchange`.

        Args:
            call: The user's.
            factors: What the user passed; it may be wrong.
            recvbuf: Likewise.
            op: Likewise.
            algorithm: Likewise.

        Raises:
            MismatchError, TypeError, ValueError: As `sfb.Comm.Allreduce` does.
        """
        seen = self._seen.get(id(recvbuf))
        opened: Opened | None = None
        if seen is not None and seen.repeatable:
            done, opened = self._again(call, seen, factors, recvbuf, op, algorithm)
            if done is not None:
                return done
        opened = opened or self._open(call, factors, recvbuf, op, algorithm, carry=True)
        return self._reduce_opened(opened, factors)

    def steps(
        self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str
    ) -> Generator[Any, None, Exchange]:
        """Do one exchange in steps; the first of them shows the other ranks what is to come.

        Arguments and errors as of `reduce`.
        """
        opened = self._open(call, factors, recvbuf, op, algorithm, wait=False)
        yield None
        plan, _ = yield from self._settle(opened)
        return (yield from self._run(plan, opened.meeting, factors, opened.receiver))

    def make(
        self, call: str, factors: Any, receiver: Any, op: MPI.Op, algorithm: str
    ) -> tuple[Plan, Receiver, Meeting]:
        """Check the arguments on all ranks, and return the plan with everything it needs in place; collective.

        Arguments and errors as of `reduce`.
        """
        opened = self._open(call, factors, receiver, op, algorithm)
        plan, _ = run(self._settle(opened))
        return plan, opened.receiver, opened.meeting

    def repeat(
        self, plan: Plan, number: int, samples: int, factors: Factors, recvbuf: Any, receiver: Receiver
    ) -> Generator[Any, None, Exchange]:
        """Do the exchange of a persistent plan, the one prepared by call ``number``, in steps."""
        agree = self._team.agree
        error: Exception | None = None
        signature: tuple[object, ...] = ()
        try:
            seen = self._see(recvbuf)
            receiver = seen.receiver(recvbuf)
            check_factors(factors, seen, receiver, MPI.SUM)
            seen.signature(AUTO, receiver)
            if factors.shape != plan.problem.shape or len(factors) != samples:
                raise ValueError(f"factors were {plan.problem.shape} with S={samples} when the plan was made")
            signature = (number, normal(receiver.settings))
        except Exception as caught:  # whatever it is, the other ranks wait to hear of it
            error = caught
        meeting = agree.open("Start", signature, lambda: describe_call(factors, receiver, plan.algorithm), error=error)
        yield None
        yield from agree.steps(meeting)
        return (yield from self._run(plan, meeting, factors, receiver))

    def _reduce_opened(self, opened: Opened, factors: Any) -> Exchange:
        """Do an exchange that the others have been shown, waiting."""
        call, number = opened.meeting.call, opened.meeting.number
        plan, parcel = opened.plan, opened.parcel
        if plan is None:
            plan, name = run(self._settle(opened))
        else:
            name = _turn(plan, None)
        began = perf_counter()
        carried = opened.meeting.parcels if parcel.algorithm == name else None
        doing = Call(self._team, number, call, blocking=True, wire=self._options.wire, parcels=carried)
        factors = self._rounded(factors, number)
        for step in ALGORITHMS[name].run(plan.problem, doing, factors, opened.receiver):
            if step is not POSTED:
                step.Wait()
        doing.finish()
        opened.receiver.end()
        seconds = perf_counter() - began
        waited = began - opened.shown
        if plan.trial is not None:
            if carried is not None:
                spent = seconds + parcel.seconds, waited
            elif doing.repetition is not None:
                spent = seconds, 0.0
            else:
                spent = seconds + opened.shown - opened.began, waited
            self._note_time(plan, name, *spent)
        if carried is not None:
            seconds += parcel.seconds + waited
        self._note_repeatable(opened, plan, name, doing)
        return self._report(plan, name, seconds, doing)

    def _note_time(self, plan: Plan, name: str, worked: float, waited: float) -> None:
        """Remember the time of a call of a trial; the next call tells the other ranks."""
        self._timed = Timed(plan, name, (round(worked * 1e9), round(waited * 1e9)))

    def _note_repeatable(self, opened: Opened, plan: Plan, name: str, doing: Call) -> None:
        """Remember an exchange that the next one may repeat: its data went with the headers, or in one call."""
        seen, signature, meeting = opened.seen, opened.signature, opened.meeting
        assert seen is not None
        assert signature is not None
        if meeting.counts is not None or not seen.complete or self._options.wire is not None:
            return
        if doing.parcels is not None and brief(plan.problem, self._team.threads, opened.receiver):
            parcel = opened.parcel._replace(seconds=0.0)
            exchange: Carried | Repeated = Carried(plan.problem, self._team, parcel, products=ALGORITHMS[name] is dense)
        elif doing.repetition is not None:
            exchange = doing.repetition()
        else:
            return
        wire_bytes = self._wire_bytes(plan, name)
        seen.remember(signature, Again(name, exchange, plan, wire_bytes, meeting.size, meeting.digest))

    def _again(
        self, call: str, seen: Seen, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str
    ) -> tuple[tuple[str, int, float, float] | None, Opened | None]:
        """Do an exchange like the last one of its signature.

        Returns:
            What `reduce` does, if that was done; and what has been begun, where it is not like that on other ranks.
        """
        began, timed = perf_counter(), self._timed
        try:
            if op is not MPI.SUM or type(factors) is not Factors or not seen.same(recvbuf):
                return _NOT_DONE
            receiver = seen.receiver(recvbuf)
            last = seen.ready(algorithm, receiver) if timed is None else None
            last = last or self._find_again(seen, receiver, algorithm)
            if last is None or len(factors.u) != last.samples:
                return _NOT_DONE
        except Exception:  # whatever it is, the usual way comes upon it, too, and tells the other ranks
            return _NOT_DONE
        name, exchange, plan, wire_bytes, samples, digest = last
        agree = self._team.agree
        number = agree.number + 1
        if timed is None:
            agreed = exchange.trade(call, number, digest, factors, receiver)
        else:
            assert isinstance(exchange, Carried)
            agreed = exchange.trade(call, number, digest, factors, receiver, timed.spent)
        if agreed is None:
            return _NOT_DONE
        agree.number = number
        if agreed:
            rebuild = exchange.take(receiver)
            receiver.end()
            seconds = perf_counter() - began
            if timed is not None or plan.trial is not None:
                self._time_again(exchange, plan, name, seconds)
            return (name, wire_bytes, seconds - rebuild, rebuild), None

        self._timed = None
        parcel = exchange.parcel or NO_PARCEL
        describe = partial(describe_call, factors, recvbuf, algorithm)
        meeting = Meeting(call, number, digest, samples, describe, None, (parcel.kind, parcel.nbytes))
        exchange.show(agree, meeting)
        signature = seen.known(algorithm, receiver)
        return None, Opened(meeting, seen, receiver, algorithm, signature, timed, None, parcel, began, began)

    def _find_again(self, seen: Seen, receiver: Receiver, algorithm: str) -> Again | None:
        """Return the exchange that a call may repeat."""
        timed = self._timed
        signature = seen.known(algorithm, receiver)
        plan = None if signature is None else signature.last
        if signature is None or plan is None or not plan.kept:
            return None
        last = signature.again.get(_turn(plan, timed))
        if last is None or last.plan is not plan:
            return None
        if timed is None and plan.trial is None:
            seen.make_ready(algorithm, receiver, signature, last)
        elif not isinstance(last.exchange, Carried):  # its header has no room for times
            return None
        return last

    def _time_again(self, exchange: Carried | Repeated, plan: Plan, name: str, seconds: float) -> None:
        """Note the time of the call before, and remember that of this one, which repeated one of a trial."""
        timed, self._timed = self._timed, None
        if timed is not None:
            assert isinstance(exchange, Carried)
            timed.plan.note(timed.algorithm, exchange.elapsed() * 1e-9)
        if plan.trial is not None:
            self._note_time(plan, name, seconds, 0.0)

    def _run(
        self, plan: Plan, meeting: Meeting, factors: Factors, receiver: Receiver
    ) -> Generator[Any, None, Exchange]:
        """Run the algorithm of a plan, in steps."""
        began = perf_counter()
        call = Call(self._team, meeting.number, meeting.call, blocking=False, wire=self._options.wire)
        factors = self._rounded(factors, meeting.number)
        yield from ALGORITHMS[plan.algorithm].run(plan.problem, call, factors, receiver)
        call.finish()
        receiver.end()
        return self._report(plan, plan.algorithm, perf_counter() - began, call)

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

    def _report(self, plan: Plan, name: str, seconds: float, call: Call) -> Exchange:
        seconds -= call.rebuild_seconds
        return Exchange(name, self._wire_bytes(plan, name), seconds, call.rebuild_seconds)

    def _wire_bytes(self, plan: Plan, name: str) -> int:
        wire = plan.problem.memo.get(name)
        if wire is None:
            wire = plan.problem.memo[name] = ALGORITHMS[name].wire_bytes(plan.problem, self._team.rank)
        return wire

    def _open(
        self,
        call: str,
        factors: Any,
        recvbuf: Any,
        op: MPI.Op,
        algorithm: str,
        *,
        wait: bool = True,
        carry: bool = False,
    ) -> Opened:
        """Check the arguments on this rank, and show the others what is to come.

        ``wait`` for them a moment; ``carry`` along what the algorithm will probably need, if it goes with the headers.
        """
        began = perf_counter()
        error: Exception | None = None
        seen: Seen | None = None
        receiver = recvbuf
        signature: Signature | None = None
        digest = size = 0
        parcel = NO_PARCEL
        timed, self._timed = self._timed, None
        agree = self._team.agree
        try:
            seen = self._see(recvbuf)
            receiver = seen.receiver(recvbuf)
            check_factors(factors, seen, receiver, op)
            signature = seen.signature(algorithm, receiver)
            digest = signature.digest(call)
            size = len(factors.u)
            if carry and agree.room.size:
                parcel = self._pack(signature, factors, timed)
        except Exception as caught:  # whatever it is, the other ranks wait to hear of it
            error = caught
        shown = perf_counter()
        meeting = agree.open(
            call,
            digest,
            lambda: describe_call(factors, recvbuf, algorithm),
            size=size,
            spent=(0, 0) if timed is None else timed.spent,
            error=error,
            wait=wait,
            parcel=(parcel.kind, parcel.nbytes),
            values=parcel.values,
        )
        plan: Plan | None = None
        if timed is None and signature is not None and agree.settled(meeting):
            plan = signature.plans.get(size)
            if plan is not None and not plan.kept:  # what is forgotten on one rank is forgotten on all
                plan = None
        return Opened(meeting, seen, receiver, algorithm, signature, timed, plan, parcel, began, shown)

    def _pack(self, signature: Signature, factors: Factors, timed: Timed | None) -> Parcel:
        """Write what the algorithm of the last such call would send into the agreement's room, if it goes there."""
        size = len(factors.u)
        plan = signature.plans.get(size) or signature.last or self._plans.get((signature.key, size))
        if plan is None:
            return NO_PARCEL
        name = _turn(plan, timed)
        if name not in PARCELS:
            return NO_PARCEL
        kind, pack = PARCELS[name]
        began = perf_counter()
        packed = pack(plan.problem, factors, self._team.agree, self._team.threads)
        return NO_PARCEL if packed is None else Parcel(name, kind, *packed, perf_counter() - began)

    def _settle(self, opened: Opened) -> Generator[Any, None, tuple[Plan, str]]:
        """Agree with the other ranks, in steps; return the plan with all that it needs in place, and whose turn it is.

        That is found before the time of the call before is noted: what ranks have sent along rests on it.
        """
        team, meeting, timed = self._team, opened.meeting, opened.timed
        yield from team.agree.steps(meeting, timed=timed is not None)
        assert opened.seen is not None
        assert opened.signature is not None
        size = meeting.size if meeting.counts is None else meeting.counts.tobytes()
        key = opened.signature.key, size
        plan = self._plans.get(key)
        if plan is None:
            yield ALONE
            plan = self._new_plan(opened)
            if len(self._plans) >= MOST:
                self._plans.pop(next(iter(self._plans))).kept = False
            self._plans[key] = plan
        name = _turn(plan, timed)
        if timed is not None:
            timed.plan.note(timed.algorithm, meeting.elapsed * 1e-9)
        opened.signature.last = plan
        if opened.seen.complete and meeting.counts is None:
            opened.signature.plans = {size: plan}
        if not opened.seen.complete:
            yield ALONE
            with on_all_ranks(team.world, meeting.call):
                opened.receiver.prepare(np.zeros if opened.seen.block is None else team.share)
        return plan, name

    def _see(self, recvbuf: Any) -> Seen:
        """Return what is known of a receiver, after checking it if anything about it is new."""
        seen = self._seen.get(id(recvbuf))
        if seen is not None and seen.holds(recvbuf):
            return seen
        receiver = recvbuf if isinstance(recvbuf, Receiver) else Assign(recvbuf)
        receiver.check()
        block = find(receiver.array)
        state = [array for array in receiver.state if array is not None]
        if any(np.may_share_memory(array, receiver.array) for array in state):
            raise ValueError("the receiver's state shares memory with its array")
        for array in (receiver.array, *state):
            its = find(array)
            if its is not None and not self._team.owns(its):
                raise ValueError("the receiver is shared by other ranks than this communicator's; use its `shared`")
            if (its is None) != (block is None):
                raise ValueError("the receiver's state must lie where its array does, both in shared memory or neither")
        if len(self._seen) >= MOST:
            self._seen.pop(next(iter(self._seen)))
        seen = self._seen[id(recvbuf)] = Seen(recvbuf, receiver, block, self._options)
        return seen

    def _new_plan(self, opened: Opened) -> Plan:
        """Choose the algorithm and allocate; every rank comes here with the same arguments but for S."""
        team, receiver, meeting = self._team, opened.receiver, opened.meeting
        assert opened.seen is not None
        problem = Problem(
            shape=opened.seen.shape,
            dtype=opened.seen.dtype,
            counts=np.full(team.size, meeting.size, np.int64) if meeting.counts is None else meeting.counts,
            node_of=team.node_of,
            passes=receiver.passes,
            sharing=team.sharing,
            shared=opened.seen.block is not None,
            assigns=isinstance(receiver, Assign),
            max_bytes=self._options.max_bytes,
            whole=receiver.whole,
            wire=self._options.wire,
        )
        call, algorithm = meeting.call, opened.algorithm
        # All ranks find the same here.
        if receiver.whole and (algorithm not in (AUTO, "broadcast", "node") or not problem.fits):
            raise ValueError(
                f'max_norm needs the factors of all ranks at once: algorithm {algorithm!r} must be "auto", '
                f'"broadcast" or "node", and their bytes within max_bytes, {problem.max_bytes}'
            )
        with on_all_ranks(team.world, call):
            team.load_kernels()
        if algorithm == AUTO:
            plan = choose(problem, ALGORITHMS, AUTO, self._profile(), trials=not self._options.reproducible)
        else:
            plan = choose(problem, ALGORITHMS, algorithm, self._profile_at_hand())
        # Each step is collective and can fail on one rank: agree on it before the next.
        for name in plan.trial.algorithms if plan.trial is not None else [plan.algorithm]:
            with on_all_ranks(team.world, call):
                ALGORITHMS[name].prepare(problem, team)
        # The kernels' memory too: amid the exchange a rank that has none could not tell the others.
        with on_all_ranks(team.world, call):
            kernels.scratch_for(problem.depth, receiver.array)
        return plan


def _turn(plan: Plan, timed: Timed | None) -> str:
    """Return the algorithm of a call of a plan, of which another may be yet to be noted."""
    if plan.trial is None:
        return plan.algorithm
    return plan.trial.after(timed.algorithm if timed is not None and timed.plan is plan else None)
