"""A communicator that reduces sufficient factors as well as arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from math import prod
from operator import index
from os import PathLike
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb.agreement import Meeting, compare
from sfb.arguments import (
    MOST,
    NO_PARCEL,
    Again,
    Opened,
    Options,
    Parcel,
    Seen,
    Signature,
    Timed,
    describe_call,
    normal,
)
from sfb.arrays import Arrays, gathers, scatters
from sfb.calibrate import find_profile, first_profile
from sfb.collectives import ALGORITHMS, MAX_BYTES, PARCELS, Problem, dense
from sfb.collectives.call import ALONE, POSTED, Call
from sfb.collectives.carried import Carried
from sfb.collectives.quick import Repeated, brief
from sfb.factors import Factors
from sfb.kernels import half
from sfb.persistent import Persistent
from sfb.plan import AUTO, Plan, choose
from sfb.profile import Profile
from sfb.progress import PolledRequest, Queue, Request, Ticker, run
from sfb.receiver import Assign, Receiver
from sfb.shared import Block, find, find_named
from sfb.team import STALL, Team

__all__ = ["Comm", "Exchange"]

_log = logging.getLogger("sfb")

_ALLREDUCE = MPI.Intracomm.Allreduce  # looked up once, for calls that take MPI a microsecond
_DONE, _NOT_DONE = (True, None), (False, None)  # what a repeated exchange may come to
_TICK = 5e-4  # seconds between two looks of the thread after exchanges under way


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


class Comm(MPI.Intracomm):
    """An `MPI.Intracomm` whose `Allreduce` also takes `Factors`, and is faster than MPI's; all else is mpi4py's own.

    It is the communicator it is made from, not a duplicate. The library talks on a communicator of
    its own, made by the first call that needs it; `free`, or the end of a ``with`` block, gives that
    back, and a later call makes it anew.

    Args:
        comm: The intracommunicator to use, `MPI.COMM_WORLD` for instance.
        check: Let the ranks of the node find out first whether all pass plain arrays to `Allreduce`, and reduce those
            without MPI where that is faster. Without it plain arrays go straight to MPI, and a rank that passes an
            array where another passes `Factors` hangs. Calls with `Factors` are always checked, on all ranks.
        node: Communicator of the ranks that share memory with this one, if it is not to be all
            ranks of the host: those of a NUMA domain, say. Giving it makes the call collective.
        profile: What the machine can do: a `Profile`, or the file of one that ``sfb tune`` wrote. By default that
            of the environment variable SFB_PROFILE, or else of the user's cache, or else the first choice of an
            algorithm measures for up to half a second.
        reproducible: Choose algorithms by the profile given, or by stated rates, and never by measuring, so that the
            same program on the same ranks gives the same bits in every run.
        max_bytes: Ceiling of a rank's buffers for the factors of one exchange; beyond it they travel and are applied
            in blocks.
        progress: "thread" for a thread that takes `Iallreduce` forward, "poll" to do so only inside calls of
            this library.
        wire: Send factors in 16 bits, "bfloat16" or "float16", rather than in their 32: half the bytes, and no longer
            exact. They are rounded once, before the exchange, whatever the algorithm; all sums are formed in float32.
        seed: Round them stochastically, so that the mean of many sums is exact; the same seed gives the same bits.
            To nearest without one.
        stall: Seconds after which a rank that waits for others names them in a warning of the logger "sfb".

    Raises:
        TypeError: ``comm`` is not an intracommunicator.
        ValueError: An option is out of range; or the ranks of ``node`` lie on different hosts, on every rank.
        ProfileError: The profile cannot be read.
    """

    def __new__(
        cls,
        comm: MPI.Intracomm | None = None,
        *,
        check: bool = True,
        node: MPI.Intracomm | None = None,
        profile: Profile | str | PathLike[str] | None = None,
        reproducible: bool = False,
        max_bytes: int = MAX_BYTES,
        progress: str = "thread",
        wire: str | None = None,
        seed: int | None = None,
        stall: float = STALL,
    ) -> Comm:
        """Wrap ``comm``; mpi4py calls it without arguments to duplicate."""
        if comm is not None and not isinstance(comm, MPI.Intracomm):
            what = "COMM_NULL" if comm == MPI.COMM_NULL else type(comm).__name__
            raise TypeError(f"comm must be an MPI.Intracomm, got {what}")
        if progress not in ("thread", "poll"):
            raise ValueError(f'progress must be "thread" or "poll", got {progress!r}')
        if not max_bytes > 0:
            raise ValueError(f"max_bytes must be > 0, got {max_bytes!r}")
        if not stall > 0:
            raise ValueError(f"stall must be a number of seconds > 0, got {stall!r}")
        if wire is not None and wire not in half.FORMATS:
            raise ValueError(f"wire must be None, {' or '.join(map(repr, half.FORMATS))}, got {wire!r}")
        if seed is not None and (wire is None or isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"seed must be an integer, and goes with wire, got {seed!r} and {wire!r}")
        if profile is not None and not isinstance(profile, Profile):
            profile = Profile.load(profile)
        self = super().__new__(cls, comm)
        self._owner = comm is None
        self._options = Options(check, profile, reproducible, max_bytes, progress, wire, seed, stall)
        self._team_or_none = None
        self._arrays = None
        self._left_to_mpi = 0
        self._profile_or_none = None
        self._plans = {}
        self._seen = {}
        self._timed = None
        self._helpless = False
        self._last = None
        self._queue = Queue()
        self._ticker = None
        self._placed = node is not None
        if node is not None:
            self._team_or_none = Team(self, node, stall=stall)
        return self

    _owner: bool
    _options: Options
    _placed: bool
    _team_or_none: Team | None
    _arrays: Arrays | None
    _left_to_mpi: int  # bytes below which an array is MPI's whatever other ranks say
    _profile_or_none: Profile | None
    _plans: dict[object, Plan]
    _seen: dict[int, Seen]
    _timed: Timed | None
    _helpless: bool
    _last: tuple[str, int, float, float] | None
    _queue: Queue
    _ticker: Ticker | None

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, *, algorithm: str = AUTO) -> None:
        """Reduce to all ranks: arrays as `MPI.Intracomm.Allreduce` does, factors exactly and cheaper.

        With factors the receiver gets G = Σ over ranks of uᵀv, summed in the order of ranks, with the
        same bits on every rank.

        Args:
            sendbuf: `Factors` of a K×D matrix; S may differ between ranks and calls and be 0. Or any
                buffer that mpi4py takes.
            recvbuf: With factors, a K×D array of the same dtype, which is set to G, or an optimizer
                of `sfb.optim`, which applies G without forming it. An array, or an optimizer's
                parameter, from `Comm.shared` is worked by the ranks of a node together. Without factors
                any buffer that mpi4py takes; within a node arrays that all lie in one array of
                `Comm.shared`, and results in one, are reduced where they lie, faster.
            op: `MPI.SUM` with factors.
            algorithm: "auto" takes the cheapest by the cost model; "node", "broadcast", "pipelined",
                "dense" or "sharded" forces one (docs/algorithms.md). For factors only.

        Raises:
            MismatchError: Ranks disagree on shape, dtype, receiver or algorithm, or on whether they
                pass factors; raised on every rank.
            TypeError, ValueError: An argument is wrong on this or another rank; raised on every rank.
        """
        # Arrays first: asking an abstract class about them takes a third of what a small call may cost.
        small = type(recvbuf) is np.ndarray and recvbuf.nbytes < self._left_to_mpi
        if small and not isinstance(sendbuf, Factors) and algorithm is AUTO and not Block.named:
            _ALLREDUCE(self, sendbuf, recvbuf, op)
            return
        if isinstance(sendbuf, Factors) or (type(recvbuf) is not np.ndarray and isinstance(recvbuf, Receiver)):
            if self._queue.busy:
                self._queue.drain()
            self._reduce("Allreduce", sendbuf, recvbuf, op, algorithm)
            return
        if self._options.check and self._reduce_plain(sendbuf, recvbuf, op, algorithm):
            return
        if Block.named:
            self._reduce_by_mpi(sendbuf, recvbuf, op)
        else:
            super().Allreduce(sendbuf, recvbuf, op)

    def Reduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> None:
        """Reduce, and scatter the parts, as `MPI.Intracomm.Reduce_scatter_block` does; within a node faster."""
        arrays = self._arrays_on_node() if scatters(recvbuf) else None
        if arrays is None or not arrays.reduce_scatter(sendbuf, recvbuf, op, leave=self._under_way()):
            super().Reduce_scatter_block(sendbuf, recvbuf, op)

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:
        """Gather to all ranks, as `MPI.Intracomm.Allgather` does; within a node faster."""
        arrays = self._arrays_on_node() if gathers(recvbuf, self.size) else None
        if arrays is None or not arrays.allgather(sendbuf, recvbuf, leave=self._under_way()):
            super().Allgather(sendbuf, recvbuf)

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, *, algorithm: str = AUTO) -> Any:
        """Begin to reduce to all ranks, as `Allreduce` does; the request's Wait ends it.

        Until then neither the factors nor the receiver may be used or changed. Several exchanges may be under
        way at once; all ranks begin them in the same order, and wait in any. What is wrong with the arguments, on
        this or another rank, is raised by Wait or Test. The first call of an optimizer that lacks its state waits.

        Returns:
            With factors a `Request` of this library, which is also an `MPI.Request` if the communicator's
            ``progress`` is "thread"; mpi4py's own for plain arrays.
        """
        if not (isinstance(sendbuf, Factors) or isinstance(recvbuf, Receiver)):
            error = _plain_error(recvbuf, algorithm)
            if error is not None:
                raise error
            return super().Iallreduce(sendbuf, recvbuf, op)
        # Whether its state exists is compared in the next call, so it is not left to the queue to create it.
        lacks_state = isinstance(recvbuf, Receiver) and any(array is None for array in recvbuf.state)
        return self._request(self._steps("Iallreduce", sendbuf, recvbuf, op, algorithm), at_once=lacks_state)

    def Allreduce_init(
        self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, info: MPI.Info = MPI.INFO_NULL, *, algorithm: str = AUTO
    ) -> Any:
        """Prepare an `Allreduce` of these very arrays, to be done many times; collective.

        The algorithm is chosen and everything is allocated now. Start and Wait of what is returned do the
        exchange, with the values that factors, receiver and its settings hold at Start.

        Returns:
            With factors a `Persistent`, mpi4py's own `MPI.Prequest` for plain arrays.

        Raises:
            MismatchError, TypeError, ValueError: As `Allreduce` does.
        """
        if not (isinstance(sendbuf, Factors) or isinstance(recvbuf, Receiver)):
            error = _plain_error(recvbuf, algorithm)
            if error is not None:
                raise error
            return super().Allreduce_init(sendbuf, recvbuf, op, info)
        plan, receiver, meeting = self._make("Allreduce_init", sendbuf, recvbuf, op, algorithm)
        samples = len(sendbuf)

        def start() -> Any:
            return self._request(self._repeat(plan, meeting.number, samples, sendbuf, recvbuf, receiver))

        return Persistent(plan, start)

    def shared(self, shape: int | Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        """Return a zeroed array with one copy per node, in an MPI-3 shared window; collective.

        Every rank of a node sees and may change the same memory; order writes and reads by
        collective calls. It stays valid after `free`.

        Args:
            shape: Of the array, equal on all ranks.
            dtype: Any NumPy dtype without object fields, equal on all ranks.

        Raises:
            MismatchError: Ranks ask for different arrays.
            TypeError, ValueError: Not a shape, or not a dtype that can be shared.
        """
        error: Exception | None = None
        sizes: tuple[int, ...] = ()
        kind: np.dtype[Any] = np.dtype(np.float32)
        try:
            sizes, kind = _sizes(shape), np.dtype(dtype)
            if any(n < 0 for n in sizes):
                raise ValueError(f"shape must have no negative sizes, got {sizes}")
            if kind.hasobject or kind.itemsize == 0 or kind.subdtype is not None:
                raise TypeError(f"an array of {kind!r} cannot be shared: its elements have no fixed size in memory")
            if prod(sizes) * kind.itemsize > np.iinfo(np.intp).max:
                raise ValueError(f"an array of shape {sizes} and {kind} does not fit into memory")
        except Exception as caught:  # whatever it is, the other ranks wait to hear of it
            error = caught
        wanted = f"{sizes} of {kind.str}"
        self._queue.drain()
        self._team.agree.check("shared", wanted, lambda: wanted, error=error)
        return self._team.share(sizes, kind)

    @property
    def node(self) -> MPI.Intracomm:
        """Communicator of the ranks that share memory with this one; the first use is collective."""
        return self._team.node

    @property
    def last_exchange(self) -> Exchange | None:
        """How the last `Allreduce` of factors went on this rank; None before the first."""
        return None if self._last is None else Exchange(*self._last)

    def plan(self, sendbuf: Factors, recvbuf: Any, *, algorithm: str = AUTO) -> Plan:
        """Return what `Allreduce` with these arguments would do; collective.

        Kernels are compiled, buffers allocated and the optimizer's missing state created, so that the first
        `Allreduce` need not; nothing is exchanged.

        Raises:
            MismatchError, TypeError, ValueError: As `Allreduce` does.
        """
        return self._make("plan", sendbuf, recvbuf, MPI.SUM, algorithm)[0]

    @property
    def profile(self) -> Profile:
        """What the choice of algorithms rests on; the first use is collective and may measure."""
        self._queue.drain()
        return self._known_profile()

    def _known_profile(self) -> Profile:
        found = self._found_profile()
        if found is None:
            found = self._profile_or_none = first_profile(self._team)
        return found

    def _found_profile(self) -> Profile | None:
        """Return the profile if it need not be measured; collective."""
        if self._profile_or_none is None:
            given = self._options.profile
            if given is None and self._options.reproducible:
                given = Profile()
            self._profile_or_none = find_profile(self._team, given)
        return self._profile_or_none

    def free(self) -> None:
        """Give back what this object owns; collective, and harmless when repeated.

        That is what the library holds on the communicator, and the communicator if this object made
        it (`Dup`, `Clone`). The one that was passed to `Comm` stays valid, and so do arrays from
        `shared` that are still in use.
        """
        self._release()
        if self._owner:
            super().free()

    def Dup(self, info: MPI.Info | None = None) -> Comm:
        """Duplicate the communicator, as `MPI.Comm.Dup` does; with the same options."""
        return self._like(super().Dup(info))

    def Clone(self) -> Comm:
        """Clone the communicator, as `MPI.Comm.Clone` does; with the same options."""
        return self._like(super().Clone())

    def _like(self, copy: Comm) -> Comm:
        copy._options = self._options
        copy._profile_or_none = self._profile_or_none
        copy._placed = self._placed
        if self._placed and self._team_or_none is not None:
            copy._team_or_none = Team(copy, self.node, stall=self._options.stall)
        return copy

    def Free(self) -> None:
        """Free the communicator, as `MPI.Comm.Free` does, and what the library holds on it; collective."""
        self._release()
        super().Free()

    def _release(self) -> None:
        self._queue.drain()
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None
        team, self._team_or_none, self._arrays, self._left_to_mpi = self._team_or_none, None, None, 0
        self._plans.clear()
        self._seen.clear()
        self._timed = None
        if team is not None:
            team.free()

    def __enter__(self) -> Comm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With an error on the way the other ranks may never reach a collective.
        if kind is None:
            self.free()

    @property
    def _team(self) -> Team:
        if self._team_or_none is None:
            self._team_or_none = Team(self, stall=self._options.stall)
        return self._team_or_none

    def _reduce_plain(self, sendbuf: Any, recvbuf: Any, op: MPI.Op, algorithm: str) -> bool:
        """Reduce what are no factors, and return True, or False if MPI is to do it."""
        arrays = self._arrays or self._arrays_if_possible()
        busy = self._queue.busy and self._under_way()
        if type(recvbuf) is not np.ndarray or algorithm is not AUTO:
            error = _plain_error(recvbuf, algorithm)
            if error is not None:
                if arrays is not None:
                    arrays.refuse(error)
                raise error
        if arrays is None:
            return False
        if arrays.far and arrays.takes(recvbuf):
            self._queue.drain()
            arrays.allreduce_everywhere(sendbuf, recvbuf, op, partial(self._reduce_by_mpi, sendbuf, recvbuf, op))
            return True
        return arrays.allreduce(sendbuf, recvbuf, op, leave=busy)

    def _reduce_by_mpi(self, sendbuf: Any, recvbuf: Any, op: MPI.Op) -> None:
        if type(recvbuf) is np.ndarray and find_named(recvbuf) is not None:
            # MPI may compute in the result, which other ranks may have passed, too.
            result = np.array(recvbuf)
            super().Allreduce(sendbuf, result, op)
            np.copyto(recvbuf, result)
        else:
            super().Allreduce(sendbuf, recvbuf, op)

    def _under_way(self) -> bool:
        """Return whether exchanges are under way, of which there may be only so many beside plain arrays."""
        if not self._queue.busy:
            return False
        self._queue.make_room()
        return True

    def _arrays_on_node(self) -> Arrays | None:
        """Return what exchanges plain arrays, if all ranks are of one node."""
        if not self._options.check or self.size == 1:
            return None
        arrays = self._arrays or self._arrays_if_possible()
        return arrays if arrays is not None and self._team.nodes == 1 else None

    def _arrays_if_possible(self) -> Arrays | None:
        """Return what exchanges plain arrays, or None where Numba cannot be imported: MPI does it then."""
        if not self._helpless:
            try:
                self._arrays = Arrays(self._team, self._found_profile)
                self._left_to_mpi = self._arrays.left
            except ImportError as error:
                self._helpless = True
                _log.warning("Allreduce leaves plain arrays to MPI, unchecked: %s", error)
        return self._arrays

    def _request(self, steps: Iterator[Any], *, at_once: bool = False) -> Any:
        """Begin an exchange that does not block, or bring it to its end ``at_once``."""
        exchange = self._queue.begin(steps)
        if at_once:
            self._queue.finish(exchange)
        if self._options.progress == "poll" or MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            return PolledRequest(self._queue, exchange)
        if self._ticker is None:
            self._ticker = Ticker(self._queue, _TICK)
        self._ticker.wake()
        return Request(self._queue, exchange)

    def _make(
        self, call: str, factors: Any, receiver: Any, op: MPI.Op, algorithm: str
    ) -> tuple[Plan, Receiver, Meeting]:
        """Check the arguments on all ranks, and return the plan with everything it needs in place; collective."""
        self._queue.drain()
        opened = self._open(call, factors, receiver, op, algorithm)
        plan, _ = run(self._settle(opened))
        return plan, opened.receiver, opened.meeting

    def _reduce(self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str) -> None:
        """Do one exchange, waiting; what `_steps` does, with less ado."""
        seen = self._seen.get(id(recvbuf))
        opened: Opened | None = None
        if seen is not None and seen.repeatable:
            done, opened = self._reduce_again(call, seen, factors, recvbuf, op, algorithm)
            if done:
                return
        opened = opened or self._open(call, factors, recvbuf, op, algorithm, carry=True)
        self._last = self._reduce_opened(opened, factors)

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

    def _reduce_again(
        self, call: str, seen: Seen, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str
    ) -> tuple[bool, Opened | None]:
        """Do an exchange like the last one of its signature.

        Returns:
            Whether that was done; and what has been begun, where it is not like that on other ranks.
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
            self._last = name, wire_bytes, seconds - rebuild, rebuild
            return _DONE

        self._timed = None
        parcel = exchange.parcel or NO_PARCEL
        describe = partial(describe_call, factors, recvbuf, algorithm)
        meeting = Meeting(call, number, digest, samples, describe, None, (parcel.kind, parcel.nbytes))
        exchange.show(agree, meeting)
        signature = seen.known(algorithm, receiver)
        return False, Opened(meeting, seen, receiver, algorithm, signature, timed, None, parcel, began, began)

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

    def _steps(
        self, call: str, factors: Any, recvbuf: Any, op: MPI.Op, algorithm: str
    ) -> Generator[Any, None, Exchange]:
        """Do one exchange in steps; the first of them shows the other ranks what is to come."""
        opened = self._open(call, factors, recvbuf, op, algorithm, wait=False)
        yield None
        plan, _ = yield from self._settle(opened)
        return (yield from self._run(plan, opened.meeting, factors, opened.receiver))

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

    def _repeat(
        self, plan: Plan, number: int, samples: int, factors: Factors, recvbuf: Any, receiver: Receiver
    ) -> Generator[Any, None, Exchange]:
        """Do the exchange of a persistent plan, the one prepared by call ``number``, in steps."""
        agree = self._team.agree
        error: Exception | None = None
        signature: tuple[object, ...] = ()
        try:
            seen = self._see(recvbuf)
            receiver = seen.receiver(recvbuf)
            self._check_factors(factors, seen, receiver, MPI.SUM)
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
            self._check_factors(factors, seen, receiver, op)
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
            allocate = np.zeros if opened.seen.block is None else team.share
            _together(team, meeting.call, lambda: opened.receiver.prepare(allocate))
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

    def _check_factors(self, factors: Any, seen: Seen, receiver: Receiver, op: MPI.Op) -> None:
        if not isinstance(factors, Factors):
            raise TypeError(f"sendbuf must be Factors when recvbuf is an optimizer, got {type(factors).__name__}")
        if op is not MPI.SUM and op != MPI.SUM:
            raise ValueError("op must be MPI.SUM with Factors: other reductions of uᵀv need the dense matrix")
        factors.check()
        u, v, shape = factors.u, factors.v, seen.shape
        if (u.shape[1], v.shape[1]) != shape:
            raise ValueError(f"the receiver must have the shape {factors.shape} of the factors, got {shape}")
        if u.dtype != seen.dtype:
            raise ValueError(f"the receiver must have the dtype {u.dtype} of the factors, got {seen.dtype}")
        if self._options.wire is not None and u.dtype != np.float32:
            raise TypeError(f"wire={self._options.wire!r} takes float32 factors, got {u.dtype}")
        for array in (receiver.array, *receiver.state):
            if array is not None:
                for name, factor in (("u", u), ("v", v)):
                    if np.may_share_memory(factor, array):
                        raise ValueError(f"{name} shares memory with the receiver; copy it first")

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
        _together(team, call, team.load_kernels)
        if algorithm == AUTO:
            plan = choose(problem, AUTO, self._known_profile(), trials=not self._options.reproducible)
        else:
            plan = choose(problem, algorithm, self._profile_or_none or self._options.profile)
        # Each step is collective and can fail on one rank: agree on it before the next.
        for name in plan.trial.algorithms if plan.trial is not None else [plan.algorithm]:
            _together(team, call, partial(ALGORITHMS[name].prepare, problem, team))
        # The kernels' memory too: amid the exchange a rank that has none could not tell the others.
        _together(team, call, lambda: kernels.scratch_for(problem.depth, receiver.array))
        return plan


def _turn(plan: Plan, timed: Timed | None) -> str:
    """Return the algorithm of a call of a plan, of which another may be yet to be noted."""
    if plan.trial is None:
        return plan.algorithm
    return plan.trial.after(timed.algorithm if timed is not None and timed.plan is plan else None)


def _together(team: Team, call: str, step: Callable[[], None]) -> None:
    """Do a collective step that can fail on one rank; then every rank raises."""
    error: Exception | None = None
    try:
        step()
    except Exception as caught:
        error = caught
    compare(team.world, call, error=error)


def _plain_error(recvbuf: Any, algorithm: str) -> Exception | None:
    """Return what is wrong with a call of plain arrays before MPI sees it."""
    if algorithm != AUTO:
        return ValueError(f"algorithm={algorithm!r} is for Factors; plain arrays take {AUTO!r}")
    if isinstance(recvbuf, Factors):
        return TypeError("Factors cannot receive; pass an array or an optimizer as recvbuf")
    return None


def _sizes(shape: Any) -> tuple[int, ...]:
    """Return ``shape`` as NumPy reads it: an integer or a sequence of them."""
    try:
        return (index(shape),)
    except TypeError:
        return tuple(index(n) for n in shape)
