"""The relay: entries travel along the tree of their origin, with bounded memory on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
from mpi4py import MPI

from sfb.runtime.limits import MAX_COUNT
from sfb.runtime.seals import DamagedMessageError
from sfb.store.entry import ABORT, UPDATE, Entry, credits_of, pack, pack_credits, unpack
from sfb.store.priority import Priority
from sfb.store.throttle import Bucket
from sfb.store.timer import Timer
from sfb.topology import Topology
from sfb.trace.calls import message as note_message
from sfb.trace.now import NOW

__all__ = ["Relay"]

_MESSAGE, _CREDIT = 1, 2  # tags
_COALESCED = 1 << 20  # bytes of a message of several entries, at most
_FLIGHTS = 2  # messages in flight to a neighbour; more would wait in MPI, where priorities do not reach them
_PATIENCE = 0.005  # seconds for which a rank may collect credits before it returns them


class _Edge:
    """The traffic towards an out-neighbour.

    Attributes:
        pending: Entries to send.
        unreturned: Bytes sent and not yet returned as credit, for each number of hops that they had travelled.
        flights: Messages in flight: request, memory, entries.
        sent: The number of messages sent so far.
        returned: The number of messages with credits that have come back.
    """

    def __init__(self, depth: int) -> None:
        self.pending: list[Entry] = []
        self.unreturned = [0] * depth
        self.flights: list[tuple[MPI.Request, np.ndarray, list[Entry]]] = []
        self.sent = self.returned = 0


class Relay:
    """A rank's part in sending the entries of all ranks to all others; no method blocks.

    An entry follows the tree of its origin, so it reaches each rank once. A rank may send a neighbour a window of bytes
    before the neighbour returns them as credit, one window for each number of hops travelled. The neighbour returns the
    credit when the entry has left for all of its children, where it occupies the window of the next hop. So windows
    wait for windows of more hops only, and those of the last hop wait for nothing: full buffers cannot wait for each
    other in a circle (structured buffer pools, Merlin and Schweitzer, "Deadlock avoidance in store-and-forward
    networks", IEEE Trans. Communications 1980). An empty window takes an entry of any size. Entries that the replica
    keeps anyway (`keep`) take no room, so the rank returns their credit when they arrive.

    Args:
        world: A communicator that only the relay uses.
        topology: The graph of its ranks.
        deliver: Called with each entry of another rank.
        priority: The order in which pending updates leave.
        bucket: The rank's budget of bytes; None for no limit.
        max_bytes: Ceiling for this rank's own entries that wait, and another as large for the windows of all
            in-neighbours.
        timer: The clock by which the rank collects credits.
        checks: Returns whether messages from and to a rank have checksums.

    Attributes:
        needed: Updates of this clock and earlier ones go first.
        held: Bytes of entries in memory and of messages in flight.
        sent_bytes: Bytes of messages sent so far, without credits.
        sent_messages: Messages sent so far, without credits.
        received_bytes: Bytes of messages received so far, without credits.
        received_messages: Messages received so far, without credits.
        largest: The largest number of entries that have waited for one neighbour.
    """

    def __init__(
        self,
        world: MPI.Intracomm,
        topology: Topology,
        deliver: Callable[[Entry], None],
        *,
        priority: Priority,
        bucket: Bucket | None,
        max_bytes: int,
        timer: Timer,
        checks: Callable[[int], bool],
    ) -> None:
        self._world = world
        self._rank = world.rank
        self._deliver = deliver
        self._priority = priority
        self._bucket = bucket
        self._now = timer.now
        self._children = [topology.children(origin, self._rank) for origin in range(world.size)]
        self._depth = max(1, topology.diameter)
        self._edges = {rank: _Edge(self._depth) for rank in topology.out_neighbours(self._rank)}
        sources = topology.in_neighbours(self._rank)
        self._owed = {rank: np.zeros(self._depth, np.int64) for rank in sources}
        self._returned = dict.fromkeys(sources, 0.0)
        # The numbers of the next messages: of entries from in-neighbours, of credits to them.
        self._due = dict.fromkeys(sources, 0)
        self._credited = dict.fromkeys(sources, 0)
        self._checks = checks
        self._ranks = world.size
        self._returning: list[tuple[MPI.Request, np.ndarray]] = []
        self._arriving: list[tuple[MPI.Request, np.ndarray, int]] = []
        # All ranks use the largest in-degree, since sender and receiver must agree on the window.
        widest = max((len(topology.in_neighbours(rank)) for rank in range(world.size)), default=1)
        self._window = max_bytes // (max(1, widest) * self._depth)
        self._own_limit = max_bytes
        self._own = 0
        self._kept = -1
        self._most = _COALESCED if bucket is None else min(_COALESCED, bucket.size)
        self._status = MPI.Status()
        self._damaged = False
        self.needed = -1
        self.held = self.largest = 0
        self.sent_bytes = self.sent_messages = 0
        self.received_bytes = self.received_messages = 0

    def fits(self, entry: Entry) -> bool:
        """Return whether this rank may push an entry now, beside its own entries that wait."""
        return entry.clock <= self._kept or self._own == 0 or self._own + entry.nbytes <= self._own_limit

    def keep(self, clock: int) -> None:
        """Let entries of ``clock`` and earlier ones take no room: the replica keeps them until it has their clocks."""
        if clock <= self._kept:
            return
        self._kept = clock
        for edge in self._edges.values():
            for entry in chain(edge.pending, *(entries for _, _, entries in edge.flights)):
                if entry.clock <= clock:
                    self._vacate(entry)

    def has_sent(self, clock: int) -> bool:
        """Return whether no entry of ``clock`` or an earlier one waits for a neighbour."""
        return not any(entry.clock <= clock for edge in self._edges.values() for entry in edge.pending)

    @property
    def awaited(self) -> list[int]:
        """The neighbours for which entries wait."""
        return [rank for rank, edge in self._edges.items() if edge.pending]

    @property
    def idle(self) -> bool:
        """Whether every entry has left this rank."""
        return not any(edge.pending or edge.flights for edge in self._edges.values())

    @property
    def settled(self) -> bool:
        """Whether every entry has left, and neighbours and this rank have returned all credits."""
        owes = any(owed.any() for owed in self._owed.values())
        return self.idle and not any(any(e.unreturned) for e in self._edges.values()) and not owes

    @property
    def queued(self) -> int:
        """The number of entries that wait, each counted once for each neighbour that it waits for."""
        return sum(len(edge.pending) for edge in self._edges.values())

    def push(self, entry: Entry) -> None:
        """Send an entry of this rank's own, which `fits`.

        Raises:
            ValueError: The entry is too large for a message.
        """
        if entry.nbytes > MAX_COUNT:
            raise ValueError(f"an update of {entry.nbytes} bytes is too large to be sent at once; push it in parts")
        if self._children[self._rank]:
            self._own += entry.nbytes
            self._forward(entry)

    def step(self, *, receive: bool = True, settle: bool = False) -> bool:
        """Receive, forward and send what is possible now; return whether anything happened.

        Args:
            receive: Whether to take messages.
            settle: Whether to return all credits at once.

        Raises:
            DamagedMessageError: A message has arrived damaged; the relay takes no more messages.
        """
        moved = receive and self._receive()
        for rank, edge in self._edges.items():
            if edge.flights and edge.flights[0][0].Test():
                self._complete(edge)
                moved = True
            while edge.pending and self._send(rank, edge):
                moved = True
        self._return_credits(settle)
        return moved

    def finish(self) -> None:
        """Wait until the last credits have left."""
        MPI.Request.Waitall([request for request, _ in self._returning])
        self._returning.clear()

    def _receive(self) -> bool:
        moved = False
        while not self._damaged:
            message = self._world.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, self._status)
            if message is None:
                break
            moved = True
            memory = np.empty(self._status.Get_count(MPI.BYTE), np.uint8)
            source = self._status.source
            if self._status.tag == _CREDIT:
                message.Recv([memory, MPI.BYTE])
                self._take_credits(memory, source)
                continue
            self.held += memory.nbytes
            self._arriving.append((message.Irecv([memory, MPI.BYTE]), memory, source))
        # In the order of arrival, so that the entries of a neighbour stay in order.
        while not self._damaged and self._arriving and self._arriving[0][0].Test():
            _, memory, source = self._arriving.pop(0)
            moved = True
            self.received_messages += 1
            self.received_bytes += memory.nbytes
            if NOW.on:
                note_message("relay in", source, memory.nbytes)
            self.held -= memory.nbytes  # its entries count from here on
            for entry in self._opened(memory, source):
                self.held += entry.nbytes
                self._forward(entry)
                self._deliver(entry)
        return moved

    def _opened(self, memory: np.ndarray, source: int) -> list[Entry]:
        """Return the entries of a message, the next of its sender."""
        number = self._due[source]
        self._due[source] += 1
        try:
            checked = self._checks(source)
            entries = unpack(memory, source, number, ranks=self._ranks, hops=self._depth, checked=checked)
            for entry in entries:
                if entry.hop == self._depth and self._children[entry.origin]:
                    raise DamagedMessageError(f"the message of rank {source} holds an entry that is to go too far")
            return entries
        except DamagedMessageError:
            self._damaged = True
            raise

    def _take_credits(self, memory: np.ndarray, source: int) -> None:
        """Take back credits from an out-neighbour."""
        edge = self._edges[source]
        try:
            credits = credits_of(memory, source, edge.returned, self._depth, checked=self._checks(source))
            if (credits > edge.unreturned).any():
                raise DamagedMessageError(f"the message of rank {source} returns more credit than it was given")
        except DamagedMessageError:
            self._damaged = True
            raise
        edge.returned += 1
        for hop, nbytes in enumerate(credits.tolist()):
            edge.unreturned[hop] -= nbytes

    def _forward(self, entry: Entry) -> None:
        """Queue an entry for this rank's children in the tree of its origin."""
        children = self._children[entry.origin]
        if entry.source < 0:
            self.held += entry.nbytes
        entry.sending = len(children)
        for child in children:
            pending = self._edges[child].pending
            pending.append(entry)
            self.largest = max(self.largest, len(pending))
        if entry.clock <= self._kept:
            self._vacate(entry)
        if not children:
            self._release(entry)

    def _release(self, entry: Entry) -> None:
        """Release an entry that has left for all children."""
        self.held -= entry.nbytes
        self._vacate(entry)

    def _vacate(self, entry: Entry) -> None:
        """Give back the room that an entry takes, unless it has been: owe its sender the credit."""
        if not entry.occupies:
            return
        entry.occupies = False
        nbytes = entry.nbytes
        if entry.source < 0:
            self._own -= nbytes
        else:
            owed = self._owed[entry.source]
            if not owed.any():
                self._returned[entry.source] = self._now()
            owed[entry.hop - 1] += nbytes

    def _send(self, rank: int, edge: _Edge) -> bool:
        """Send a neighbour one message of the entries that may leave now; return whether there were any."""
        if self._bucket is not None and not self._bucket.ready():
            return False
        chosen: list[Entry] = []
        total = 0
        for entry in self._in_order(edge.pending):
            # Urgent entries do not wait for flights: after a read the rank may not call the store for long.
            if len(edge.flights) >= _FLIGHTS and not self._urgent(entry):
                break
            nbytes, hop = entry.nbytes, entry.hop
            if chosen and total + nbytes > self._most:
                break
            occupied = edge.unreturned[hop]
            if occupied and occupied + nbytes > self._window and entry.kind != ABORT:
                continue
            edge.unreturned[hop] += nbytes
            total += nbytes
            chosen.append(entry)
        if not chosen:
            return False
        gone = set(map(id, chosen))
        edge.pending = [entry for entry in edge.pending if id(entry) not in gone]
        memory = pack(chosen, edge.sent, checked=self._checks(rank))
        edge.sent += 1
        self.held += memory.nbytes
        edge.flights.append((self._world.Isend([memory, MPI.BYTE], rank, _MESSAGE), memory, chosen))
        self.sent_bytes += memory.nbytes
        self.sent_messages += 1
        if NOW.on:
            note_message("relay out", rank, memory.nbytes, f"{len(chosen)} entries")
        if self._bucket is not None:
            self._bucket.take(memory.nbytes)
        for entry in chosen:
            self._priority.sent(entry)
        return True

    def _in_order(self, pending: list[Entry]) -> Iterable[Entry]:
        """Return the urgent entries, then the others by priority."""
        if len(pending) == 1:
            return pending
        urgent = [entry for entry in pending if self._urgent(entry)]
        if len(urgent) == len(pending):
            return urgent
        rest = [entry for entry in pending if not self._urgent(entry)]
        return [*urgent, *self._priority.order(rest)]

    def _urgent(self, entry: Entry) -> bool:
        """Return whether the consistency of another rank may need the entry now."""
        return entry.kind != UPDATE or entry.clock <= self.needed

    def _complete(self, edge: _Edge) -> None:
        """Note that the oldest message in flight has left."""
        _, memory, entries = edge.flights.pop(0)
        self.held -= memory.nbytes
        for entry in entries:
            entry.sending -= 1
            if entry.sending == 0:
                self._release(entry)

    def _return_credits(self, settle: bool) -> None:
        if self._returning:
            self._returning = [(request, memory) for request, memory in self._returning if not request.Test()]
        for rank, owed in self._owed.items():
            due = owed.any() and (
                settle or 4 * owed.max() >= self._window or self._now() > self._returned[rank] + _PATIENCE
            )
            if due:
                memory = pack_credits(owed, self._credited[rank], checked=self._checks(rank))
                self._credited[rank] += 1
                owed[:] = 0
                self._returning.append((self._world.Isend([memory, MPI.BYTE], rank, _CREDIT), memory))
