"""The store: replicas that every update reaches, and that readers find fresh enough."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb.factors import Factors
from sfb.kernels import sparse
from sfb.optim import Optimizer
from sfb.runtime.board import Watch
from sfb.runtime.errors import RankFailedError
from sfb.runtime.inquiry import failures_among
from sfb.runtime.limits import STALL, timeout_or_default
from sfb.runtime.progress import Ticker
from sfb.runtime.seals import DamagedMessageError
from sfb.runtime.ulfm import private
from sfb.store import priority as priorities
from sfb.store.base import StoreBase, StoreError, farewell, reason
from sfb.store.consistency import BSP, Consistency
from sfb.store.entry import ABORT, CLOCK, DENSE, END, UPDATE, Entry, csr_size
from sfb.store.relay import Relay
from sfb.store.replica import Replica
from sfb.store.settings import Settings
from sfb.store.throttle import Bucket
from sfb.store.timer import Timer
from sfb.trace.spans import span
from sfb.units import parse_rate

__all__ = ["Stats", "Store"]

_TICK = 5e-4  # seconds between two looks of the progress thread
_FAREWELL = 5.0  # seconds for which a rank that fails tries to tell the others


@dataclass(frozen=True)
class Stats:
    """What a store has done on this rank so far.

    Attributes:
        clock: The clock of this rank: the number of its calls of `Store.clock`.
        updates: Updates applied to the replica, from all ranks; the parts of a split update count one each.
        sent_bytes: Bytes of messages sent, forwarded updates included.
        sent_messages: Messages sent.
        received_bytes: Bytes of messages received.
        received_messages: Messages received.
        reads: Reads of tables.
        waits: Reads that had to wait.
        wait_seconds: Seconds that reads have waited.
        staleness: The number of reads for each number of clocks that the slowest rank was behind this one.
        queued: Entries that wait now, each counted once for each neighbour that it waits for.
        largest_queue: The largest number of entries that have waited for one neighbour.
        peak_bytes: The largest size of the store's buffers, without replica and optimizer.
    """

    clock: int
    updates: int
    sent_bytes: int
    sent_messages: int
    received_bytes: int
    received_messages: int
    reads: int
    waits: int
    wait_seconds: float
    staleness: dict[int, int]
    queued: int
    largest_queue: int
    peak_bytes: int


class Store(StoreBase):
    """Parameters of which every rank holds a replica; there is no server.

    A rank pushes updates. They travel to its neighbours in a graph and on from there, until every rank has applied each
    exactly once. A rank reads its own replica, and waits if others are too far behind. Ranks call `push` and `clock` as
    often as they like; only the constructor and `close` are collective. Messages move in every call of the store, and
    in a thread if asked for.

    Under `BSP` the store sums the updates of a clock over ranks and applies the sum as one step of the rule, as
    `Comm.Allreduce` does; readers see it from the next clock on, and all ranks hold the same bits. Under `SSP` and
    `ASP` each update is a step of its own, applied as it arrives; a rank sees its own at once. Rules other than plain
    SGD depend on the order of updates, so replicas differ there by the orders in which ranks received them.

    Under `BSP` a collective of the user may follow a read, if all ranks read before it in the same clock; they may push
    in between. Elsewhere a rank in a collective holds up those that wait for its messages (docs/store.md).

    Args:
        comm: The ranks; any intracommunicator. The store talks on a communicator of its own.
        tables: Initial values by name, float32 or float64 of any shape, the same on all ranks; copied.
        rule: An optimizer without a parameter, `sfb.optim.SGD(lr=0.1)`, for all tables; or one for each name.
        topology: A name ("halton", "exponential", "ring", …), an `sfb.topology.Topology`, or a networkx graph
            of the ranks from 0 on.
        consistency: `BSP`, `SSP` or `ASP`; `BSP` by default.
        bandwidth: Bytes that this rank may send per second, or a text such as "1Gbit/s"; no limit by default. The store
            splits updates of plain SGD by sample to keep to it; others leave whole, and the next waits.
        priority: Which pending updates leave first where the budget is short: "fifo", "random", "round-robin" over
            tables, or the largest by "absolute" or "relative" magnitude: ‖u‖‖v‖ of a sample, or that divided by the
            norm of the table. Updates that consistency needs leave before all others.
        seed: The seed of "random".
        max_bytes: Ceiling each for updates of this rank that wait, for those that it forwards, and, except under `BSP`,
            for those that it has yet to apply (docs/store.md). `push` waits beyond it; under `BSP` not for updates of a
            clock in which the rank has read.
        progress: "poll" to move messages in calls of the store only, "thread" to move them all the time.
        stall: Seconds after which a rank that waits for others names them in a warning of the logger "sfb".
        timeout: Seconds after which such a wait raises `RankFailedError`, as in `Comm`.
        timer: The clock of budgets and waits, and what the rank does while it waits; tests pass their own.
        check_finite: Let `push` raise ValueError, which names the rank and the table, for updates that hold NaN or
            infinity, before anything is sent.

    Raises:
        TypeError, ValueError: An argument is wrong on this or another rank; on every rank.
        MismatchError: Ranks disagree about tables, rule, topology, consistency or ``max_bytes``; on every rank.

    >>> import numpy as np
    >>> import sfb
    >>> from mpi4py import MPI
    >>> rule = sfb.optim.SGD(lr=0.5)
    >>> with sfb.Store(MPI.COMM_SELF, {"w": np.zeros((2, 3))}, rule, consistency=sfb.SSP(3)) as store:
    ...     for _ in range(4):
    ...         store.push("w", sfb.Factors(np.ones((1, 2)), np.ones((1, 3))))
    ...         store.clock()
    >>> store["w"]
    array([[-2., -2., -2.],
           [-2., -2., -2.]])
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        tables: Mapping[str, np.ndarray],
        rule: Optimizer | Mapping[str, Optimizer],
        *,
        topology: Any = "halton",
        consistency: Consistency | None = None,
        bandwidth: float | str | None = None,
        priority: str = "fifo",
        seed: int = 0,
        max_bytes: int = 64 << 20,
        progress: str = "poll",
        stall: float = STALL,
        timeout: float | None = None,
        timer: Timer | None = None,
        check_finite: bool = False,
    ) -> None:
        self._timer = timer = Timer() if timer is None else timer
        self.consistency = consistency = BSP() if consistency is None else consistency
        bucket: Bucket | None = None
        order = priorities.Priority()

        def prepare() -> str:
            nonlocal bucket, order
            if not isinstance(consistency, Consistency):
                raise TypeError(f"consistency must be BSP(), SSP(s) or ASP(), got {consistency!r}")
            if not max_bytes > 0:
                raise ValueError(f"max_bytes must be > 0, got {max_bytes!r}")
            if not stall > 0:
                raise ValueError(f"stall must be a number of seconds > 0, got {stall!r}")
            timeout_or_default(timeout)
            if progress not in ("thread", "poll"):
                raise ValueError(f'progress must be "thread" or "poll", got {progress!r}')
            if progress == "thread" and MPI.Query_thread() != MPI.THREAD_MULTIPLE:
                raise ValueError('progress="thread" needs an MPI with MPI_THREAD_MULTIPLE; use "poll"')
            bucket = None if bandwidth is None else Bucket(parse_rate(bandwidth, "bandwidth"), timer.now)
            order = priorities.create(priority, seed + comm.rank)
            return f"{consistency!r}, max_bytes={max_bytes}"

        super().__init__(comm, tables, rule, topology, prepare)
        world = self._world
        self._check_finite = check_finite
        self._bucket = bucket
        self._priority = order
        self._settings = Settings(self._tables, world.rank, world.size)
        self._replica = Replica(self._tables, world.size, ordered=consistency.ordered, threads=self._threads)
        self._relay = Relay(
            world,
            self.topology,
            self._deliver,
            priority=order,
            bucket=bucket,
            max_bytes=max_bytes,
            timer=timer,
            checks=self._checks,
        )
        self._limit = max_bytes
        self._stall = stall
        self._failures = failures_among(private(MPI.Intracomm(world.Dup())), timeout_or_default(timeout))
        self._pushed = 0
        self._lock = threading.RLock()
        self._norms: dict[int, float] = {}
        self._reads = self._waits = 0
        self._wait_seconds = 0.0
        self._staleness: Counter[int] = Counter()
        self._peak = 0
        self._ticker = None
        if progress == "thread":
            self._ticker = Ticker(self, _TICK)
            self._ticker.wake()

    def __repr__(self) -> str:
        names = ", ".join(table.name for table in self._tables)
        return f"Store({names}; {self.topology.name}, {self.consistency!r}, clock {self._clock})"

    def _refresh(self, name: str) -> None:
        """Wait until the updates have arrived that a read at this clock must see, and apply all that have arrived.

        Under `BSP` this rank has then sent everything that others need for a read at the same clock, so a collective of
        the user may follow, in which no rank takes messages of the store. The replica keeps what arrives until it is
        applied, so updates of this clock and earlier ones take no room of the relay: those that others need never wait
        behind those of a rank that is ahead, and `push` does not wait for a rank that has read.
        """
        bound = self.consistency.bound(self._clock)
        replica, relay, ordered = self._replica, self._relay, self.consistency.ordered
        self._reads += 1
        if ordered:
            with self._lock:
                relay.keep(self._clock)
        self._move()

        def fresh() -> bool:
            return replica.arrived >= bound and (not ordered or relay.has_sent(bound))

        if not fresh():
            self._waits += 1
            began = self._timer.now()
            self._wait(fresh, lambda: replica.behind(bound) or relay.awaited, f"a read of {name!r}")
            self._wait_seconds += self._timer.now() - began
        with self._lock:
            replica.apply()
            self._staleness[max(0, self._clock - 1 - replica.arrived)] += 1
        assert replica.arrived >= bound, f"clock {self._clock} sees only clocks up to {replica.arrived}"

    def _push(self, number: int, update: Factors | np.ndarray) -> None:
        """Send an update to all ranks, this one included, stamped with this rank's clock."""
        for size, payload, magnitude in self._parts(number, update):
            entry = Entry(UPDATE, self._rank, self._clock, number, 0, self._pushed, size, magnitude, payload)
            self._send(entry)
            self._pushed += 1
        self._move()

    def _end_clock(self) -> None:
        with self._lock:
            text = self._settings.text()
            self._compare(self._rank, self._clock, text)
        payload = np.frombuffer(text.encode(), np.uint8) if text else None
        self._send(Entry(CLOCK, self._rank, self._clock, size=self._pushed, payload=payload))
        self._clock += 1
        self._pushed = 0
        self._norms.clear()
        self._move()

    def flush(self) -> None:
        """Wait until every update that this rank has pushed or must forward has left.

        Raises:
            RuntimeError: The store is closed.
            StoreError: This or another rank has left the store by an exception.
        """
        self._check_open()
        self._wait(lambda: self._relay.idle, list, "flush")

    def _close(self) -> None:
        """Receive, forward and apply updates until every rank has closed the store and has every update."""
        if self._pushed:
            self._end_clock()
        self._send(Entry(END, self._rank, self._clock))
        replica, relay = self._replica, self._relay
        self._wait(
            lambda: replica.complete and relay.settled, lambda: replica.behind(self._clock), "close", settle=True
        )
        if self._ticker is not None:
            self._ticker.stop()
        replica.apply()
        relay.finish()
        self._open = False
        self._world.Barrier()
        self._failures.free()
        self._world.Free()

    def stats(self) -> Stats:
        """Return what the store has done on this rank so far.

        >>> import numpy as np
        >>> import sfb
        >>> from mpi4py import MPI
        >>> with sfb.Store(MPI.COMM_SELF, {"w": np.zeros(3)}, sfb.optim.SGD(lr=0.5)) as store:
        ...     store.push("w", np.ones(3))
        ...     store.clock()
        >>> store.stats().updates, store.stats().sent_bytes
        (1, 0)
        """
        relay, replica = self._relay, self._replica
        return Stats(
            clock=self._clock,
            updates=replica.applied,
            sent_bytes=relay.sent_bytes,
            sent_messages=relay.sent_messages,
            received_bytes=relay.received_bytes,
            received_messages=relay.received_messages,
            reads=self._reads,
            waits=self._waits,
            wait_seconds=self._wait_seconds,
            staleness=dict(sorted(self._staleness.items())),
            queued=relay.queued,
            largest_queue=relay.largest,
            peak_bytes=self._peak,
        )

    @property
    def busy(self) -> bool:
        """Whether the progress thread has anything to do."""
        return self._open

    def advance(self) -> None:
        """Move messages, in the progress thread; only calls of the user apply updates."""
        with self._lock:
            if self._open and self._failure is None:
                room = self.consistency.ordered or self._replica.waiting_bytes < self._limit
                try:
                    self._step(receive=room)
                except MPI.Exception as error:  # the next call of the user raises it
                    self._failure = f"the progress thread has met an error of MPI: {error}"
                self._note_peak()

    def _parts(self, number: int, update: Factors | np.ndarray) -> list[tuple[int, np.ndarray, float]]:
        """Return the size, payload and magnitude of each part of an update."""
        table = self._tables[number]
        measure = self._priority.measure
        scale = 1.0
        if measure == "relative":
            if number not in self._norms:
                self._norms[number] = kernels.norm_dense(table.matrix) or 1.0
            scale /= self._norms[number]
        if not isinstance(update, Factors):
            dense = np.ascontiguousarray(update).reshape(table.matrix.shape)
            payload = dense.reshape(-1).view(np.uint8)
            payload = payload.copy() if np.may_share_memory(payload, update) else payload
            return [(DENSE, payload, _magnitude(scale * kernels.norm_dense(dense)) if measure else 0.0)]
        u, v = update.u, update.v
        step = samples = len(update)
        if samples > 1 and table.additive:
            if measure:
                step = 1
            elif self._bucket is not None:
                step = max(1, self._bucket.size * samples // update.nbytes)
        magnitudes = scale * _lengths(u) * _lengths(v) if measure else np.zeros(samples)
        parts = []
        for first in range(0, max(1, samples), max(1, step)):
            piece = u[first : first + step], v[first : first + step]
            size, payload = _payload(*piece)
            parts.append((size, payload, _magnitude(magnitudes[first : first + step].sum())))
        return parts

    def _send(self, entry: Entry) -> None:
        """Wait until there is room for an entry, and give it to the relay and to this rank's replica."""
        relay = self._relay
        if not relay.fits(entry):
            self._wait(lambda: relay.fits(entry), list, "push")
        with self._lock:
            relay.push(entry)
            self._replica.deliver(entry)

    def _deliver(self, entry: Entry) -> None:
        """Take an entry of another rank."""
        if entry.kind == ABORT:
            self._failure = self._failure or farewell(entry.origin, entry.payload)
            return
        wrong = self._replica.fault(entry)
        if wrong:
            raise DamagedMessageError(f"the message of rank {entry.source} {wrong}")
        if entry.kind == CLOCK:
            self._compare(entry.origin, entry.clock, entry.payload.tobytes().decode(errors="replace"))
        self._replica.deliver(entry)

    def _step(self, **options: bool) -> bool:
        """Let the relay move messages, and return whether any moved; a damaged one ends the store on all ranks."""
        try:
            return self._relay.step(**options)
        except DamagedMessageError as error:
            self._fail(error)
            return True

    def _fail(self, error: BaseException) -> None:
        """Note that this rank fails, unless another has before, and tell the others."""
        if self._failure is None:
            message = reason(error)
            self._relay.push(Entry(ABORT, self._rank, self._clock, payload=message))
            self._failure = farewell(self._rank, message)

    def _compare(self, rank: int, clock: int, text: str) -> None:
        """Note the settings of a rank at the end of a clock; the next call of the user raises if they differ."""
        self._failure = self._failure or self._settings.note(clock, rank, text)

    def _move(self, settle: bool = False) -> bool:
        """Receive, forward and send what is possible now; return whether anything happened.

        Raises:
            StoreError: Another rank has failed.
            RankFailedError: MPI has met a rank that is gone.
        """
        with self._lock:
            replica, relay = self._replica, self._relay
            relay.needed = self.consistency.bound(max(self._clock, replica.fastest))
            try:
                moved = self._step(settle=settle)
            except MPI.Exception:
                self._failures.find()
                raise
            self._note_peak()
            if not self.consistency.ordered and replica.waiting_bytes > self._limit:
                replica.apply()
        if self._failure is not None:
            self._say_farewell()
            raise StoreError(self._failure)
        return moved

    def _note_peak(self) -> None:
        self._peak = max(self._peak, self._relay.held + self._replica.waiting_bytes)

    def _wait(
        self,
        condition: Callable[[], bool],
        missing: Callable[[], list[int]],
        what: str,
        *,
        settle: bool = False,
    ) -> None:
        """Move messages until ``condition`` holds.

        Args:
            condition: Returns whether the wait is over.
            missing: Returns the ranks that this one waits for, for a warning.
            what: The call that waits, for a warning.
            settle: Whether to return credits at once.
        """
        if condition():
            return
        watch = Watch(self._stall, self._rank, failures=self._failures)
        with span(what, "wait", label=self._label, number=self._clock) as recorded:
            while not condition():
                if not self._move(settle):
                    recorded.waits_for(missing)
                    self._timer.pause()
                    watch.look(missing, f"{what} at clock {self._clock}")

    def _abandon(self, error: BaseException) -> None:
        """Tell the other ranks that this one fails, or forward that another does, for a few seconds at most."""
        if isinstance(error, RankFailedError):  # which all ranks raise by themselves
            self._open, self._failure = False, str(error)
            if self._ticker is not None:
                self._ticker.stop()
            return
        self._fail(error)
        self._open = False
        self._say_farewell()

    def _say_farewell(self) -> None:
        """Send pending entries for a few seconds at most: one of them may tell other ranks of the failure."""
        if self._ticker is not None:
            self._ticker.stop()
        now, pause = self._timer
        end = now() + _FAREWELL
        with suppress(MPI.Exception):  # a rank has died, and the others hear of it by MPI
            while not self._relay.idle and now() < end:
                if not self._step():
                    pause()


def _payload(u: np.ndarray, v: Any) -> tuple[int, np.ndarray]:
    """Return the size and the payload of an entry with these factors."""
    if isinstance(v, np.ndarray):
        return len(u), np.concatenate([factor.reshape(-1).view(np.uint8) for factor in (u, v)])
    words = np.zeros(sparse.message_words(len(u), int(v.indptr[-1]), u.shape[1], u.itemsize), np.int64)
    sparse.pack(u, v, words)
    return csr_size(len(u)), words.view(np.uint8)


def _lengths(rows: Any) -> np.ndarray:
    """Return the norms of rows, of an array or CSR, in float64."""
    if not isinstance(rows, np.ndarray):
        starts, values = rows.indptr, rows.data[: rows.indptr[-1]].astype(np.float64)
        of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        return np.sqrt(np.bincount(of, values * values, len(starts) - 1))
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _magnitude(value: float) -> float:
    """Return a magnitude to order by: what is not finite comes first."""
    return float(np.nan_to_num(value, nan=np.inf, posinf=np.inf))
