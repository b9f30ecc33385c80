"""The board of a node: the page of shared memory on which its ranks post headers, and where they wait."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any
from weakref import ref

import numpy as np
from mpi4py import MPI

from sfb.kernels import header
from sfb.runtime.failures import Failures
from sfb.runtime.limits import NO_TAG
from sfb.runtime.windows import Block
from sfb.trace.now import NOW
from sfb.trace.watchdog import STATE_BYTES

__all__ = ["SPINS", "Board", "Event", "Watch"]

# Looks at a word before a waiting rank lets MPI progress. A look takes some nanoseconds.
SPINS = 5000
# Looks before a rank yields its core, where every rank has a core of its own and where ranks share cores.
_PATIENT, _POLITE = 4000, 50
# Bytes of memory for plain arrays up to which a board takes it at once, rather than as arrays reach it.
_FILLED = 9 << 20

_log = logging.getLogger("sfb")


class Board:
    """The board of a node (`sfb.kernels.header`, `sfb.kernels.sync`), and how its ranks wait; collective.

    Args:
        world: The library's communicator, by which MPI progresses while a rank waits.
        node: The ranks of the world that share memory.
        members: Their ranks in the world.
        crowded: Whether ranks share cores.
        stall: Seconds after which a waiting rank warns, naming the ranks that it waits for.
        clock: Returns seconds.
        failures: What is known of failures among the ranks of the world; None to wait for ever.

    Attributes:
        words: The memory of the board.
        window: Memory beside it for arrays (`sfb.kernels.arrays`), bytes; empty where the rank is alone.
        states: What each rank of the node does, in bytes of `sfb.trace.watchdog`; None once the memory is freed.
        member: What kernels take of the board beside its words: `ranks`, `me`, `SPINS` and `patience`.
        patience: Looks before the rank yields its core.
        last_phase: The last phase of a call.
        members: The ranks of the node, by their numbers in the world.
        me: This rank's number on the node.
        ranks: The number of ranks on the node.
        stall: Seconds after which a waiting rank warns.
        clock: Returns seconds.
    """

    def __init__(
        self,
        world: MPI.Intracomm,
        node: MPI.Intracomm,
        members: Sequence[int],
        *,
        crowded: bool,
        stall: float,
        clock: Callable[[], float] = monotonic,
        failures: Failures | None = None,
    ) -> None:
        from sfb.kernels import arrays, sync

        self._sync = sync
        self.last_phase = sync.LAST
        self._world = world
        self._node = node
        self.members = members
        self.me = node.rank
        self.ranks = node.size
        self.stall = stall
        self.clock = clock
        self._failures = failures
        self.patience = _POLITE if crowded else _PATIENT
        self.member = self.ranks, self.me, SPINS, self.patience
        slots = self.ranks + 1  # one for what the leader announces
        room = arrays.window_bytes(self.ranks) if self.ranks > 1 else 0
        words = header.slot(slots, 0)
        states = 8 * words + room
        self._block = Block(node, states + STATE_BYTES * self.ranks, lazy=room > _FILLED)
        self.words = self._block.array((words,), np.dtype(np.int64))
        self.window = self._block.array((room,), np.dtype(np.uint8), 8 * words)
        self.states: np.ndarray | None = self._block.array((self.ranks, STATE_BYTES), np.dtype(np.uint8), states)
        if self.me == 0:
            self.words[:] = 0
        node.Barrier()

    def meet(self, call: int, digest: int, size: int, *, wait: bool) -> int:
        """Post this rank's header for a call; return the verdict on the headers of all ranks, or `PENDING`."""
        spins = SPINS if wait else 0
        return self._sync.meet(self.words, self.ranks, self.me, call, digest, size, 0, spins, self.patience)

    def look(self, call: int, *, wait: bool) -> int:
        """Return the verdict on the headers of a call, or `PENDING`."""
        return self._sync.look(self.words, self.ranks, self.me, call, SPINS if wait else 0, self.patience)

    def headers(self, call: int) -> np.ndarray:
        """Return the headers of a call, one row per rank; all ranks have posted theirs."""
        table = self.words.reshape(self.ranks + 1, header.RING, header.BOARD_WORDS)
        return table[: self.ranks, call % header.RING, : header.WORDS]

    def mark(self, call: int, note: int) -> None:
        """Leave a note other than 0 on a call; the ranks of the node see it after the next phase of this one."""
        self.words[header.slot(self.me, call) + header.NOTE] = note

    def marks(self, call: int) -> list[int]:
        """Return the note of each rank on a call, 0 where there is none."""
        return self.headers(call)[:, header.NOTE].tolist()

    def announce(self, call: int, words: Sequence[int]) -> None:
        """Announce three words to the ranks of the node; for its leader."""
        at = header.slot(self.ranks, call)
        self.words[at : at + header.WORDS] = words
        self._sync.reach(self.words, self.ranks, call, self._sync.ARRIVED)

    def announced(self, call: int) -> list[int]:
        """Return the words that the leader has announced."""
        at = header.slot(self.ranks, call)
        return self.words[at : at + header.WORDS].tolist()

    def reach(self, call: int, phase: int) -> None:
        """Announce that this rank has reached a phase. The others then see what it wrote before."""
        self._sync.reach(self.words, self.me, call, phase)

    def reached(self, call: int, phase: int, *, wait: bool = False) -> bool:
        """Return whether every rank of the node has reached a phase."""
        spins = SPINS if wait else 0
        return self._sync.reached(self.words, 0, self.ranks, call, phase, spins, self.patience)

    def join(self, call: int, phase: int, *, wait: bool) -> bool:
        """Announce that this rank has reached a phase, and return whether all ranks have."""
        spins = SPINS if wait else 0
        return self._sync.join(self.words, self.ranks, self.me, call, phase, spins, self.patience)

    def was_announced(self, call: int, *, wait: bool) -> bool:
        """Return whether the leader has announced words for a call."""
        spins = SPINS if wait else 0
        me, phase = self.ranks, self._sync.ARRIVED
        return self._sync.reached(self.words, me, me + 1, call, phase, spins, self.patience)

    def phase(self, call: int, phase: int, name: str) -> Event:
        """Return the event that every rank of the node has reached a phase of a call.

        Args:
            call: The number of the call.
            phase: The phase.
            name: The user's call, for messages.
        """
        return Event(self, lambda wait: self.reached(call, phase, wait=wait), lambda: self.missing(call, phase), name)

    def missing(self, call: int, phase: int) -> list[int]:
        """Return the ranks that have not reached a phase, by their numbers in the world."""
        found = (self._sync.reached(self.words, r, r + 1, call, phase, 0, 1) for r in range(self.ranks))
        return [rank for rank, there in zip(self.members, found, strict=True) if not there]

    def progress(self) -> None:
        """Let MPI progress, as other ranks may wait for a message of this one, and let other processes run."""
        self.let_progress()
        os.sched_yield()

    def let_progress(self) -> None:
        """Let MPI progress, and raise its errors of the world, as when one of its ranks has died (ULFM).

        A probe that finds a message may return without progress, so this one looks for a tag that no message has.
        """
        self._world.Iprobe(MPI.ANY_SOURCE, NO_TAG)

    def wait(self, condition: Callable[[], bool], missing: Callable[[], list[int]], what: str) -> None:
        """Wait until a condition holds.

        Args:
            condition: Looks for a while, and returns whether it holds.
            missing: Returns the ranks that this one waits for, by their numbers in the world.
            what: The user's call, for messages.
        """
        watch: Watch | None = None
        while not condition():
            self.progress()
            if watch is None:
                watch = self.watch()
            watch.look(missing, what)

    def gather(self, item: Any) -> list[Any]:
        """Return the item of every rank; collective over the node."""
        return self._node.allgather(item)

    def watch(self) -> Watch:
        """Return a watch over a wait that begins now."""
        return Watch(self.stall, self._world.rank, self.clock, self._failures)

    def free(self) -> None:
        """Free the memory; collective over the node."""
        for block in self.abandon():
            block.free()

    def abandon(self) -> list[Block]:
        """Give up the memory, and return it."""
        del self.words, self.window
        self.states = None
        self._block.release()
        return [self._block]


class Watch:
    """A watch over one wait of a rank: it logs warnings that name the ranks waited for, raises if one has failed.

    Args:
        stall: Seconds before the first warning, and between warnings.
        rank: This rank.
        clock: Returns seconds.
        failures: What is known of failures; None to wait for ever.

    Attributes:
        last: The last look: the call, a function that returns the ranks waited for, and the times at which the wait
            began and of the look.
    """

    def __init__(
        self,
        stall: float,
        rank: int,
        clock: Callable[[], float] = monotonic,
        failures: Failures | None = None,
    ) -> None:
        self._stall = stall
        self._rank = rank
        self._clock = clock
        self._failures = failures
        self._began = clock()
        self._next = self._began + stall
        self.last: tuple[str, Callable[[], list[int]], float, float] | None = None

    def look(self, missing: Callable[[], list[int]], what: str) -> None:
        """Log a warning of the logger "sfb" if one is due; raise `RankFailedError` if a rank has failed."""
        now = self._clock()
        self.last = what, missing, self._began, now
        NOW.wait = ref(self)
        if self._failures is not None:
            self._failures.look(missing, what, now - self._began)
        if now < self._next:
            return
        self._next = now + self._stall
        ranks = missing()
        whom = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "other ranks"
        _log.warning("rank %d has waited %.0f s in %s for %s", self._rank, now - self._began, what, whom)


class Event:
    """An event on a node, for which a rank waits as for an MPI request.

    Args:
        board: The board of the node.
        happened: Returns whether the event has happened; looks for a while if its argument is true.
        missing: Returns the ranks that have yet to do their part, by their numbers in the world.
        name: The user's call, for messages.
    """

    __slots__ = ("_board", "_happened", "_missing", "_name")

    def __init__(
        self, board: Board, happened: Callable[[bool], bool], missing: Callable[[], list[int]], name: str
    ) -> None:
        self._board = board
        self._happened = happened
        self._missing = missing
        self._name = name

    def Test(self) -> bool:
        """Return whether the event has happened."""
        return self._happened(False)

    def Wait(self) -> None:
        """Wait for the event."""
        self._board.wait(lambda: self._happened(True), self._missing, self._name)
