"""A communicator that reduces sufficient factors as well as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.collectives import PlainCollectives, again_in_place
from sfb.arrays.ops import op_for_mpi
from sfb.arrays.probe import own_allreduce
from sfb.checks import shareable
from sfb.collectives.engine import Engine, Exchange
from sfb.collectives.options import Options
from sfb.collectives.persistent import PendingCall
from sfb.collectives.probe import empty_exchanges
from sfb.factors import Factors
from sfb.launch import warn_if_alone
from sfb.receiver import Receiver
from sfb.runtime.finalize import FINALIZED, Finalized, at_finalize, check_initialized
from sfb.runtime.limits import MAX_BYTES, STALL
from sfb.runtime.progress import Progress
from sfb.runtime.queue import Queue, QueuedExchange
from sfb.runtime.requests import Persistent
from sfb.runtime.team import Team, check_comm
from sfb.runtime.tracing import enter
from sfb.runtime.ulfm import ObjectReductions, blames_death, enabled, has_died, watch
from sfb.runtime.windows import Block
from sfb.trace.calls import PlainCall, started
from sfb.trace.now import NOW
from sfb.trace.settings import start_trace
from sfb.tuning.calibrate import Probes
from sfb.tuning.lookup import Profiles
from sfb.tuning.plan import AUTO, Plan
from sfb.tuning.profile import Profile

__all__ = ["Comm"]

_SUM = MPI.SUM
_ALLREDUCE = MPI.Intracomm.Allreduce  # looked up once, for calls that take MPI a microsecond
_TICK = 5e-4  # seconds between two looks of the thread after exchanges under way
_abandoned: list[tuple[object, ...]] = []  # keeps alive what MPI may still read or write


class Comm(ObjectReductions, MPI.Intracomm):
    """An `MPI.Intracomm` whose `Allreduce` also takes `Factors`, and is faster than MPI's; all else is mpi4py's own.

    A Comm is the communicator it is made from, not a duplicate. The library talks on a private communicator, made by
    the first call that needs it; `free`, or the end of a ``with`` block, frees that, and a later call makes it anew,
    with the same options and nodes.

    >>> from mpi4py import MPI
    >>> import numpy as np, sfb
    >>> g, G = sfb.Factors(np.ones((2, 3)), np.ones((2, 4))), np.empty((3, 4))
    >>> with sfb.Comm(MPI.COMM_SELF) as comm:
    ...     comm.Allreduce(g, G)
    >>> G[0]
    array([2., 2., 2., 2.])

    Args:
        comm: The intracommunicator to use, `MPI.COMM_WORLD` for instance.
        check: Let the ranks of the node find out first whether all pass plain arrays to `Allreduce`, and reduce those
            without MPI where that is faster. Without it plain arrays go straight to MPI, and a rank that passes an
            array where another passes `Factors` hangs. Calls with `Factors` are always checked, on all ranks.
        node: Communicator of the ranks that share memory with this one, if it is not to be all
            ranks of the host: those of a NUMA domain, say. Giving it makes the call collective.
        profile: What the machine can do: a `Profile`, or the file of one that ``sfb tune`` wrote. By default the
            profile of the environment variable SFB_PROFILE, or else that of the user's cache; without either the
            first choice of an algorithm measures one for up to half a second.
        reproducible: Choose algorithms by the profile given, or by stated rates, and never by measuring, so that the
            same program on the same ranks gives the same bits in every run.
        max_bytes: Ceiling of a rank's buffers for the factors of one exchange; beyond it they travel and are applied
            in blocks.
        progress: "thread" for a thread that takes `Iallreduce` forward, "poll" to do so only inside calls of
            this library.
        wire: Send factors in 16 bits, "bfloat16" or "float16", rather than in their 32: half the bytes, and no longer
            exact. Every algorithm rounds the factors once, before the exchange, and forms all sums in float32.
        seed: Round the factors stochastically, so that the mean of many sums is exact; the same seed gives the same
            bits. Without a seed they are rounded to nearest.
        stall: Seconds after which a rank that waits for others names them in a warning of the logger "sfb".
        check_finite: Look for NaN and infinity before anything is summed: if factors, or plain arrays in `Allreduce`,
            `Iallreduce` and `Reduce_scatter_block`, hold any, every rank raises ValueError, which names the ranks and
            places, and no receiver changes. It costs a pass over what a rank passes, and with plain arrays a small
            Allreduce, for which `Iallreduce` waits, too. The same on all ranks.
        trace: A folder into which every rank writes a trace of what it does, at `free` or at the end of the program, as
            with SFB_TRACE (docs/trace.md). One trace a process; equal on all ranks.
        timeout: Seconds after which a rank that waits for others in an exchange raises `RankFailedError`, on all ranks,
            with the names of those that do not answer; by default those of SFB_TIMEOUT, or 1800. A rank of the same
            node whose process is gone is found within seconds.

    Raises:
        TypeError: ``comm`` or ``node`` is not an intracommunicator, or is null.
        RuntimeError: MPI is not initialized, or is finalized.
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
        check_finite: bool = False,
        trace: str | PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> Comm:
        """Wrap ``comm``; mpi4py calls it without arguments to duplicate, and does not call `__init__`."""
        if comm is not None:
            check_comm("comm", comm)
            check_initialized(comm)
            warn_if_alone(comm)
        if trace is not None:
            start_trace(trace)
        enter()
        options = Options(check, reproducible, max_bytes, progress, wire, seed, stall, check_finite, timeout)
        if profile is not None and not isinstance(profile, Profile):
            profile = Profile.load(profile)
        self = super().__new__(cls, comm)
        self._owner = comm is None
        self._ended = False
        at_finalize(self)
        given = Profile() if profile is None and reproducible else profile
        self._set_up(options, Profiles(given, Probes(own_allreduce, empty_exchanges)))
        self._node_of = None
        if node is not None:
            self._team_or_none = Team(self, node, stall=stall, timeout=timeout)
            self._node_of = self._team_or_none.node_of
        return self

    def _set_up(self, options: Options, profiles: Profiles) -> None:
        self._options = options
        self._profiles = profiles
        self._team_or_none = None
        self._engine_or_none = None
        self._last = None
        self._progress = Progress(_TICK, thread=options.progress == "thread")
        self._queue = self._progress.queue
        finite = options.check_finite
        self._plain = PlainCollectives(profiles, self._progress, check=options.check, check_finite=finite)
        watch(self)

    def __init__(self, comm: MPI.Intracomm | None = None, **options: Any) -> None:
        if comm is None:
            raise TypeError("comm must be an MPI.Intracomm, got none")

    _owner: bool
    _options: Options
    _node_of: list[int] | None  # the node of each rank, if the user has given one
    _team_or_none: Team | None
    _profiles: Profiles
    _engine_or_none: Engine | None
    _last: Exchange | None
    _progress: Progress
    _queue: Queue
    _plain: PlainCollectives | Finalized
    _ended: bool

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, *, algorithm: str = AUTO) -> None:
        """Reduce to all ranks: arrays as `MPI.Intracomm.Allreduce` does, factors exactly and cheaper.

        With factors the receiver gets G = Σ over ranks of uᵀv, summed in the order of ranks, with the
        same bits on every rank.

        Args:
            sendbuf: `Factors` of a K×D matrix; S may differ between ranks and calls and be 0. Their v is dense on all
                ranks, or CSR on all. Or any buffer that mpi4py takes.
            recvbuf: With factors, a K×D array of the same dtype, which is set to G, or an optimizer
                of `sfb.optim`, which applies G without forming it. An array, or an optimizer's
                parameter, from `Comm.shared` is worked by the ranks of a node together. Without factors
                any buffer that mpi4py takes; within a node arrays that all lie in one array of
                `Comm.shared`, and results in one, are reduced where they lie, faster.
            op: `MPI.SUM` with factors. `MPI.MAX` and `MPI.MIN` of float32 and float64 give NaN where a rank has NaN, as
                in NumPy, here and in `Iallreduce`, `Allreduce_init` and `Reduce_scatter_block`; in other methods, which
                are mpi4py's, that depends on MPI.
            algorithm: "auto" takes the cheapest by the cost model; "node", "broadcast", "pipelined",
                "dense" or "sharded" forces one (docs/algorithms.md). For factors only; "pipelined" and
                "sharded" do not take CSR v.

        Raises:
            MismatchError: Ranks disagree on shape, dtype, receiver or algorithm, on whether they pass
                factors, or on whether v is CSR; raised on every rank.
            TypeError, ValueError: An argument is wrong on this or another rank; raised on every rank.
            RankFailedError: A rank is gone, or does not answer (``timeout``); raised on every rank that is left.
        """
        # Arrays first: asking an abstract class about them takes a third of what a small call may cost.
        small = type(recvbuf) is np.ndarray and recvbuf.nbytes < self._plain.left
        if small and not isinstance(sendbuf, Factors) and algorithm is AUTO and not (Block.named or NOW.on):
            if self._queue.busy:
                self._progress.under_way()
            NOW.call = ["Allreduce", self._plain, recvbuf, None]
            try:
                _ALLREDUCE(self, sendbuf, recvbuf, op if op is _SUM else op_for_mpi(op, recvbuf))
            except MPI.Exception:
                again_in_place("Allreduce", self, sendbuf, recvbuf, op_for_mpi(op, recvbuf))
            finally:
                NOW.call = None
            return
        if isinstance(sendbuf, Factors) or (type(recvbuf) is not np.ndarray and isinstance(recvbuf, Receiver)):
            if self._queue.busy:
                self._queue.drain()
            engine = self._engine_or_none or self._engine
            self._last = engine.allreduce("Allreduce", sendbuf, recvbuf, op, algorithm)
            return
        if type(recvbuf) is not np.ndarray or algorithm is not AUTO:
            error = _plain_error(recvbuf, algorithm)
            if error is not None:
                self._plain.refuse(self, self._get_team, error)
        self._do_plain("Allreduce", self._plain.allreduce, sendbuf, recvbuf, op)

    def Reduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> None:
        """Reduce, and scatter the parts, as `MPI.Intracomm.Reduce_scatter_block` does; within a node faster."""
        self._do_plain("Reduce_scatter_block", self._plain.reduce_scatter, sendbuf, recvbuf, op)

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:
        """Gather to all ranks, as `MPI.Intracomm.Allgather` does; within a node faster."""
        self._do_plain("Allgather", self._plain.allgather, sendbuf, recvbuf)

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, *, algorithm: str = AUTO) -> Any:
        """Begin to reduce to all ranks, as `Allreduce` does; the request's Wait ends it.

        Until then neither the factors nor the receiver may be used or changed. Keep plain arrays until then, as
        with mpi4py, whose requests do not. Several exchanges may be under way at once; all ranks begin them in the
        same order, and wait in any. What is wrong with the arguments, on this or another rank, is raised by Wait or
        Test. The first call of an optimizer that lacks its state waits.

        Returns:
            With factors a `Request` of this library, which is also an `MPI.Request` if the communicator's
            ``progress`` is "thread". With plain arrays an `MPI.Request`: where that thread serves, arrays of 1 MiB
            and more between nodes that have equally many ranks are this library's, once it has been used for any
            collective call before; others are mpi4py's own.
        """
        if not (isinstance(sendbuf, Factors) or isinstance(recvbuf, Receiver)):
            error = _plain_error(recvbuf, algorithm)
            if error is not None:
                raise error
            if NOW.on:
                started("Iallreduce", self._plain, recvbuf)
            return self._plain.iallreduce(self, self._team_or_none, sendbuf, recvbuf, op)
        # Whether its state exists is compared in the next call, so it is not left to the queue to create it.
        lacks_state = isinstance(recvbuf, Receiver) and any(array is None for array in recvbuf.state)
        engine = self._engine

        def propose(alone: bool) -> Iterator[Any]:
            pending = PendingCall("Iallreduce", sendbuf, recvbuf, algorithm, blocking=False)
            return engine.complete(engine.begin(pending, op, alone=alone))

        queued = self._queue.begin(propose)
        if lacks_state:
            self._queue.finish(queued)
        return self._progress.request(queued)

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
            if NOW.on:
                started("Allreduce_init", self._plain, recvbuf)
            return self._plain.allreduce_init(self, sendbuf, recvbuf, op, info)
        self._queue.drain()
        engine = self._engine
        planned = engine.plan("Allreduce_init", sendbuf, recvbuf, op, algorithm)
        assert planned.prepared is not None
        plan, samples = planned.prepared.plan, len(sendbuf)

        # The thread looks too rarely to take a shorter exchange forward.
        brief, queue = plan.seconds <= _TICK, self._queue

        def begin() -> QueuedExchange:
            if self._engine_or_none is not engine:
                raise RuntimeError(FINALIZED if self._ended else "the plan's communicator has been freed")
            if brief and not queue.busy:
                pending = engine.start(planned, samples, alone=True, brief=True)
                done = engine.completed(pending)
                if done is not None:
                    return QueuedExchange.finished(done)
                return queue.begin(lambda alone: engine.complete(pending))
            queued = queue.begin(lambda alone: engine.complete(engine.start(planned, samples, alone=alone)))
            if not brief and self._progress.threaded:
                self._progress.wake()
            return queued

        return Persistent(plan, self._queue, begin)

    def shared(self, shape: int | Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        """Return a zeroed array with one copy per node, in an MPI-3 shared window; collective.

        Every rank of a node sees and may change the same memory; order writes and reads by
        collective calls. It stays valid after `free`, and after `MPI.Finalize`.

        Args:
            shape: The shape of the array, equal on all ranks.
            dtype: Any NumPy dtype without object fields, equal on all ranks.

        Raises:
            MismatchError: Ranks ask for different arrays.
            TypeError, ValueError: Not a shape, or not a dtype that can be shared.
            MemoryError: A node lacks room for it in /dev/shm; raised on every rank.
        """
        error: Exception | None = None
        sizes: tuple[int, ...] = ()
        kind: np.dtype[Any] = np.dtype(np.float32)
        try:
            sizes, kind = shareable(shape, dtype)
        except Exception as caught:  # the other ranks wait to hear of it
            error = caught
        self._queue.drain()
        # A structured type: fields, offsets and padding, too.
        elements = kind.str if kind.names is None else repr(kind)
        self._team.agree.check("shared", f"{sizes} of {elements}", error)
        return self._team.share(sizes, kind)

    @property
    def node(self) -> MPI.Intracomm:
        """Communicator of the ranks that share memory with this one; the first use is collective."""
        return self._team.node

    @property
    def last_exchange(self) -> Exchange | None:
        """How the last `Allreduce` of factors went on this rank; None before the first."""
        return self._last

    def plan(self, sendbuf: Factors, recvbuf: Any, *, algorithm: str = AUTO) -> Plan:
        """Return what `Allreduce` with these arguments would do; collective.

        Kernels are compiled, buffers allocated and the optimizer's missing state created, so that the first
        `Allreduce` need not; nothing is exchanged.

        Raises:
            MismatchError, TypeError, ValueError: As `Allreduce` does.
        """
        self._queue.drain()
        prepared = self._engine.plan("plan", sendbuf, recvbuf, MPI.SUM, algorithm).prepared
        assert prepared is not None
        return prepared.plan

    @property
    def profile(self) -> Profile:
        """What the choice of algorithms rests on; the first use is collective and may measure."""
        self._queue.drain()
        return self._profiles.require(self._team)

    def tune(self, seconds: float = 10.0) -> Profile:
        """Return a profile of these ranks, measured now in about ``seconds``; collective.

        This communicator keeps the profile that it has: pass the new one to `Comm`, or write its `Profile.to_json`
        to a file.
        """
        self._queue.drain()
        return self._profiles.measure(self._team, seconds)

    def free(self) -> None:
        """Give back what this object owns; collective, and harmless when repeated.

        That is what the library holds on the communicator, and the communicator if this object made
        it (`Dup`, `Clone`). The one that was passed to `Comm` stays valid, and so do arrays from
        `shared` that are still in use.
        """
        self._release()
        if self._owner:
            super().free()

    def abandon(self) -> None:
        """Give up what the library holds on the communicator, one of whose ranks has died; local, with ULFM.

        Other ranks that wait for this one in the library get an `MPI.Exception`. Arrays from `shared` stay valid, but a
        communicator of other ranks does not take them. The end of a ``with`` block by such an exception does this, too.
        """
        team, self._team_or_none, self._engine_or_none, engine = self._team_or_none, None, None, self._engine_or_none
        if team is None:
            return
        team.revoke()
        died = RuntimeError("the exchange has been given up, since a rank has died")
        exchanges, arrays = self._progress.abandon(died), self._plain.arrays
        self._plain.forget()
        team.abandon()
        _abandoned.append((team, engine, arrays, exchanges))

    def Dup(self, info: MPI.Info | None = None) -> Comm:
        """Duplicate the communicator, as `MPI.Comm.Dup` does; with the same options."""
        return self._like(super().Dup(info))

    def Clone(self) -> Comm:
        """Clone the communicator, as `MPI.Comm.Clone` does; with the same options."""
        return self._like(super().Clone())

    def Dup_with_info(self, info: MPI.Info) -> Comm:
        """Duplicate the communicator, as `MPI.Comm.Dup_with_info` does; with the same options."""
        return self._like(super().Dup_with_info(info))

    def Idup(self, info: MPI.Info | None = None) -> tuple[Comm, MPI.Request]:
        """Duplicate the communicator, as `MPI.Comm.Idup` does; with the same options."""
        copy, request = super().Idup(info)
        return self._like(copy), request

    def Idup_with_info(self, info: MPI.Info) -> tuple[Comm, MPI.Request]:
        """Duplicate the communicator, as `MPI.Comm.Idup_with_info` does; otherwise like `Idup`."""
        copy, request = super().Idup_with_info(info)
        return self._like(copy), request

    def _like(self, copy: Comm) -> Comm:
        copy._set_up(self._options, replace(self._profiles))
        copy._node_of = self._node_of
        return copy

    def Free(self) -> None:
        """Free the communicator, as `MPI.Comm.Free` does, and what the library holds on it; collective."""
        self._release()
        super().Free()

    def Disconnect(self) -> None:
        """Disconnect, as `MPI.Comm.Disconnect` does, and free what the library holds; collective."""
        self._release()
        super().Disconnect()

    def _end(self) -> None:
        """Let go of all that needs MPI, as MPI is about to be finalized."""
        self._ended = True
        self._progress.abandon(RuntimeError(FINALIZED))
        self._team_or_none, self._engine_or_none, self._plain = None, None, Finalized()

    def _release(self) -> None:
        if self._ended:
            return
        self._progress.stop()
        team, self._team_or_none, self._engine_or_none = self._team_or_none, None, None
        self._plain.forget()
        if team is not None:
            team.free()

    def __reduce__(self) -> Any:
        """Pickle COMM_WORLD and COMM_SELF, as mpi4py does, with the options; ValueError for other communicators."""
        reduced: Any = super().__reduce__()
        _, (kind, comm) = reduced
        if self._node_of is not None:
            raise ValueError("cannot serialize a Comm with a node")
        return partial(kind, profile=self._profiles.given, **asdict(self._options)), (comm,)

    def __enter__(self) -> Comm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With an error on the way the other ranks may never reach a collective.
        if kind is None:
            self.free()
        elif enabled() and (blames_death(error) or has_died(self)):
            self.abandon()

    def _do_plain(self, name: str, method: Callable[..., None], sendbuf: Any, recvbuf: Any, *op: MPI.Op) -> None:
        """Do a call of plain arrays by a method of `PlainCollectives`."""
        NOW.call = [name, self._plain, recvbuf, None]
        try:
            if NOW.on:
                with PlainCall(name, self._plain, recvbuf):
                    method(self, self._get_team, sendbuf, recvbuf, *op)
            else:
                method(self, self._get_team, sendbuf, recvbuf, *op)
        finally:
            NOW.call = None

    def _get_team(self) -> Team:
        return self._team

    @property
    def _team(self) -> Team:
        if self._team_or_none is None:
            if self._ended:
                raise RuntimeError(FINALIZED)
            node: MPI.Intracomm | None = None
            if self._node_of is not None:
                node = MPI.Intracomm(MPI.Intracomm(self).Split(self._node_of[self.rank], self.rank))
            self._team_or_none = Team(self, node, stall=self._options.stall, timeout=self._options.timeout)
            if node is not None:
                node.Free()
        return self._team_or_none

    @property
    def _engine(self) -> Engine:
        if self._engine_or_none is None:
            self._engine_or_none = Engine(self._team, self._options, self._profiles)
        return self._engine_or_none


def _plain_error(recvbuf: Any, algorithm: str) -> Exception | None:
    """Return what is wrong with a call of plain arrays before MPI sees it."""
    if algorithm != AUTO:
        return ValueError(f"algorithm={algorithm!r} is for Factors; plain arrays take {AUTO!r}")
    if isinstance(recvbuf, Factors):
        return TypeError("Factors cannot receive; pass an array or an optimizer as recvbuf")
    return None
