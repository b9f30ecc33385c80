"""The store: what a user sees of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import sched_yield
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.factors import Factors
from sfb.optim import Optimizer
from sfb.runtime.board import Watch
from sfb.runtime.limits import STALL
from sfb.runtime.requests import Ticker
from sfb.store import priority as priorities
from sfb.store.base import StoreBase, StoreError
from sfb.store.consistency import BSP, Consistency
from sfb.store.entry import ABORT, CLOCK, END, UPDATE, Entry
from sfb.store.relay import Relay
from sfb.store.replica import Replica, Table
from sfb.store.throttle import Bucket
from sfb.units import parse_rate

__all__ = ["Stats", "Store"]

_TICK = 5e-4  # seconds between two looks of the thread
_FAREWELL = 5.0  # seconds for which a rank that fails tries to say so


@dataclass(frozen=True)
class Stats:
    """What a store has done on this rank so far.

    Attributes:
        clock: Of this rank.
        updates: Applied to the replica, this rank's own and those of others; parts count where updates were split.
        sent_bytes: In messages, updates of others that were passed on included.
        sent_messages: Likewise.
        received_bytes: Likewise.
        received_messages: Likewise.
        reads: Of tables.
        waits: Reads that had to wait.
        wait_seconds: Time that they waited.
        staleness: How many reads found the slowest rank so many clocks behind this one.
        queued: Entries that wait to be sent now, counted for each neighbour.
        largest_queue: The largest number that waited for one neighbour.
        peak_bytes: The largest size of the store's buffers, replica and optimizer apart.
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

    A rank pushes updates, which travel to its neighbours in a graph and on from there, until every rank has applied
    each exactly once; and it reads its own replica, waiting if others are too far behind. Ranks call `push` and
    `clock` as often as they like; only making the store and `close` are collective. Messages move in calls of the
    store, of any method, and in a thread if asked for.

    Under `BSP`, the updates of a clock are summed over ranks and applied as one step of the rule, as
    `Comm.Allreduce` does, and are seen from the next clock on; all ranks hold the same bits. Under `SSP` and `ASP`
    each update is a step of its own, applied as it arrives; a rank sees its own at once. Rules but plain SGD depend
    on the order, so that replicas differ then by what ranks have seen in different orders.

    ``store[name]`` is this rank's replica of a table, read-only; it changes with later calls, and after `close` it
    holds every update.

    Args:
        comm: The ranks; any intracommunicator. The store talks on one of its own.
        tables: Initial values by name, float32 or float64 of any shape, the same on all ranks; copied.
        rule: An optimizer without a parameter, `sfb.optim.SGD(lr=0.1)`, for all tables; or one for each name.
        topology: A name ("halton", "exponential", "ring", …), an `sfb.topology.Topology`, or a networkx graph
            of the ranks from 0 on.
        consistency: `BSP`, `SSP` or `ASP`.
        bandwidth: Bytes that this rank sends per second, or a text such as "1Gbit/s"; no limit by default.
            Updates of `plain SGD` are split by sample to keep to it; what cannot be split goes whole, and the
            next waits.
        priority: Which pending updates go first where the budget is short: "fifo", "random", "round-robin" over
            tables, or "absolute" or "relative" magnitude: ‖u‖‖v‖ of a sample, and that divided by the norm of the
            table. What consistency needs goes before.
        seed: Of the random priority.
        max_bytes: Ceiling each for updates of this rank that wait to be sent, for those that it passes on, and,
            but for BSP, for those that it has yet to apply (docs/store.md). `push` waits beyond it.
        progress: "poll" to move messages in calls of the store only, "thread" to do so all the time.
        stall: Seconds after which a rank that waits for others names them in a warning of the logger "sfb".

    Raises:
        TypeError, ValueError: An argument is wrong on this or another rank; on every rank.
        MismatchError: Ranks disagree about tables, rule, topology, consistency or ``max_bytes``; on every rank.
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
    ) -> None:
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
            if progress not in ("thread", "poll"):
                raise ValueError(f'progress must be "thread" or "poll", got {progress!r}')
            if progress == "thread" and MPI.Query_thread() != MPI.THREAD_MULTIPLE:
                raise ValueError('progress="thread" needs an MPI with MPI_THREAD_MULTIPLE; use "poll"')
            bucket = None if bandwidth is None else Bucket(parse_rate(bandwidth, "bandwidth"))
            order = priorities.create(priority, seed + comm.rank)
            return f"{consistency!r}, max_bytes={max_bytes}"

        super().__init__(comm, tables, rule, topology, prepare)
        world = self._world
        self._bucket = bucket
        self._priority = order
        self._replica = Replica(self._tables, world.size, ordered=consistency.ordered, threads=self._threads)
        self._relay = Relay(world, self.topology, self._deliver, priority=order, bucket=bucket, max_bytes=max_bytes)
        self._limit = max_bytes
        self._stall = stall
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
        """Wait for what a read at this clock has to see, and apply all that is here.

        Under `BSP` and without ``bandwidth`` other ranks need nothing more of this one then to read at the same
        clock: collectives of the user may follow.
        """
        bound = self.consistency.bound(self._clock)
        replica = self._replica
        self._reads += 1
        self._move()
        if replica.seen < bound:
            self._waits += 1
            began = perf_counter()
            self._wait(lambda: replica.seen >= bound, lambda: replica.behind(bound), f"a read of {name!r}")
            self._wait_seconds += perf_counter() - began
        with self._lock:
            replica.apply()
            self._staleness[max(0, self._clock - 1 - replica.seen)] += 1
        assert replica.seen >= bound, f"clock {self._clock} sees only clocks up to {replica.seen}"

    def push(self, name: str, update: Factors | np.ndarray) -> None:
        """Send an update, a gradient, to all ranks, this one included; it is stamped with this rank's clock.

        Args:
            name: Of the table.
            update: `Factors` of the table's shape, S may be 0; or an array of that shape. It is copied.

        Raises:
            KeyError, TypeError, ValueError: The update does not fit; nothing was sent.
            RuntimeError: The store is closed.
            StoreError: Another rank has failed.
        """
        number = self._number(name)
        self._check_open()
        table = self._tables[number]
        for size, payload, magnitude in self._parts(number, table, update):
            entry = Entry(UPDATE, self._rank, self._clock, number, 0, self._pushed, size, magnitude, payload)
            self._send(entry)
            self._pushed += 1
        self._move()

    def clock(self) -> None:
        """End this rank's clock: what is pushed from now on belongs to the next."""
        self._check_open()
        self._send(Entry(CLOCK, self._rank, self._clock, size=self._pushed))
        self._clock += 1
        self._pushed = 0
        self._norms.clear()
        self._move()

    def flush(self) -> None:
        """Wait until everything that this rank has pushed, or has to pass on, has left."""
        self._check_open()
        self._wait(lambda: self._relay.idle, list, "flush")

    def close(self) -> None:
        """End the use of the store; collective. Afterwards each replica holds every update of every rank.

        Until all ranks come, updates of others are received, passed on and applied. Doing it twice is no error.
        """
        if not self._open:
            return
        self._check_open()
        if self._pushed:
            self.clock()
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
        self._world.Free()

    def stats(self) -> Stats:
        """Return what the store has done on this rank so far."""
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
        """Whether the progress thread has anything to look after."""
        return self._open

    def advance(self) -> None:
        """Move messages, from the progress thread; updates are applied in calls of the user only."""
        with self._lock:
            if self._open and self._failure is None:
                room = self.consistency.ordered or self._replica.waiting_bytes < self._limit
                self._relay.step(receive=room)
                self._note_peak()

    def _parts(self, number: int, table: Table, update: Factors | np.ndarray) -> list[tuple[int, np.ndarray, float]]:
        """Check an update, and return size, payload and magnitude of each of its parts."""
        self._check_update(table, update)
        measure = self._priority.measure
        scale = 1.0
        if measure == "relative":
            if number not in self._norms:
                self._norms[number] = float(np.linalg.norm(table.matrix)) or 1.0
            scale /= self._norms[number]
        if not isinstance(update, Factors):
            payload = np.ascontiguousarray(update).reshape(-1).view(np.uint8)
            payload = payload.copy() if np.may_share_memory(payload, update) else payload
            return [(-1, payload, scale * float(np.linalg.norm(update)) if measure else 0.0)]
        u, v = update.u, update.v
        step = samples = len(update)
        if samples > 1 and table.additive:
            if measure:
                step = 1
            elif self._bucket is not None:
                step = max(1, self._bucket.size * samples // update.nbytes)
        magnitudes = scale * np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1) if measure else np.zeros(samples)
        parts = []
        for first in range(0, max(1, samples), max(1, step)):
            piece = u[first : first + step], v[first : first + step]
            payload = np.concatenate([factor.reshape(-1).view(np.uint8) for factor in piece])
            parts.append((len(piece[0]), payload, float(magnitudes[first : first + step].sum())))
        return parts

    def _send(self, entry: Entry) -> None:
        """Hand an entry to the relay and to this rank's replica, once there is room for it."""
        relay = self._relay
        if not relay.fits(entry.nbytes):
            self._wait(lambda: relay.fits(entry.nbytes), list, "push")
        with self._lock:
            relay.push(entry)
            self._replica.deliver(entry)

    def _deliver(self, entry: Entry) -> None:
        """Take an entry of another rank."""
        if entry.kind == ABORT:
            self._failure = self._failure or _left(entry.origin, entry.payload.tobytes())
            return
        self._replica.deliver(entry)

    def _move(self, settle: bool = False) -> bool:
        """Receive, pass on and send what is possible now; return whether anything happened."""
        with self._lock:
            replica, relay = self._replica, self._relay
            relay.needed = self.consistency.bound(max(self._clock, replica.fastest))
            moved = relay.step(settle=settle)
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
        """Move messages until ``condition`` holds."""
        watch = Watch(self._stall, self._rank)
        while not condition():
            if not self._move(settle):
                sched_yield()
                watch.look(missing, what)

    def _abandon(self, error: BaseException) -> None:
        """Tell the other ranks that this one fails, or pass on that another does, as far as that is possible soon."""
        if self._failure is None:
            text = f"{type(error).__name__}: {error}"[:1000].encode()
            self._relay.push(Entry(ABORT, self._rank, self._clock, payload=np.frombuffer(text, np.uint8)))
            self._failure = _left(self._rank, text)
        self._open = False
        self._say_farewell()

    def _say_farewell(self) -> None:
        """Send what is still to be sent, as far as that is possible soon: others may have to hear of a failure."""
        if self._ticker is not None:
            self._ticker.stop()
        end = monotonic() + _FAREWELL
        while not self._relay.idle and monotonic() < end:
            if not self._relay.step():
                sched_yield()


def _left(rank: int, text: bytes) -> str:
    return f"rank {rank} has left the store: {text.decode(errors='replace')}"
