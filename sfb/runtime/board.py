"""The board of a node: shared memory by which its ranks agree and wait for each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.kernels import header
from sfb.runtime.windows import Block

__all__ = ["Board", "Phase", "Watch"]

# Looks at a word before MPI is given a chance to make progress; a look takes some nanoseconds.
_SPINS = 5000
# Looks before the core is yielded, where every rank has a core of its own and where they share cores.
_PATIENT, _POLITE = 4000, 50

_log = logging.getLogger("sfb")


class Board:
    """What the ranks of a node show each other (`sfb.kernels.sync`), and how they wait for it; collective.

    Attributes:
        words: The memory.
        window: Memory beside it for arrays (`sfb.kernels.arrays`), bytes; empty where the rank is alone.
        place: Ranks of the node, this one's number, looks to wait for others, and looks before the core is yielded.
        glance: The same with no waiting.
        last_phase: Of a call.
        members: Ranks in the world.
        me: This one's number in the node.
        ranks: How many there are.
        stall: Seconds after which a waiting rank says whom it waits for.

    Args:
        world: The library's communicator, by which MPI progresses while a rank waits.
        node: The ranks of it that share memory.
        members: Their ranks in the world.
        crowded: Whether ranks share cores.
        stall: Seconds after which a waiting rank says whom it waits for.
    """

    def __init__(
        self, world: MPI.Intracomm, node: MPI.Intracomm, members: Sequence[int], *, crowded: bool, stall: float
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
        self._patience = _POLITE if crowded else _PATIENT
        self.place = self.ranks, self.me, _SPINS, self._patience
        self.glance = self.ranks, self.me, 0, self._patience
        slots = self.ranks + 1  # one for what the first rank announces to the others
        room = arrays.window_bytes(self.ranks) if self.ranks > 1 else 0
        words = header.slot(slots, 0)
        self._block = Block(node, 8 * words + room)
        self.words = self._block.array((words,), np.dtype(np.int64))
        self.window = self._block.array((room,), np.dtype(np.uint8), 8 * words)
        if self.me == 0:
            self.words[:] = 0
        node.Barrier()

    def meet(self, call: int, digest: int, size: int, spent: int, *, wait: bool) -> int:
        """Show this rank's header for a call and compare those of all, as far as they have come."""
        spins = _SPINS if wait else 0
        return self._sync.meet(self.words, self.ranks, self.me, call, digest, size, spent, spins, self._patience)

    def look(self, call: int, *, wait: bool) -> int:
        """Compare the headers of a call again."""
        return self._sync.look(self.words, self.ranks, self.me, call, _SPINS if wait else 0, self._patience)

    def headers(self, call: int) -> np.ndarray:
        """Return the digests, sizes and times of a call that all ranks have arrived at, one row per rank."""
        table = self.words.reshape(self.ranks + 1, header.RING, header.BOARD_WORDS)
        return table[: self.ranks, call % header.RING, : header.WORDS]

    def announce(self, call: int, words: Sequence[int]) -> None:
        """Show the node three words as its first rank."""
        at = header.slot(self.ranks, call)
        self.words[at : at + header.WORDS] = words
        self._sync.reach(self.words, self.ranks, call, self._sync.ARRIVED)

    def announced(self, call: int) -> list[int]:
        """Return what the first rank has announced."""
        at = header.slot(self.ranks, call)
        return self.words[at : at + header.WORDS].tolist()

    def reach(self, call: int, phase: int) -> None:
        """Let the others see that this rank has reached a phase, and whatever it wrote before."""
        self._sync.reach(self.words, self.me, call, phase)

    def reached(self, call: int, phase: int, *, wait: bool = False) -> bool:
        """Return whether every rank of the node has reached a phase."""
        spins = _SPINS if wait else 0
        return self._sync.reached(self.words, 0, self.ranks, call, phase, spins, self._patience)

    def join(self, call: int, phase: int, *, wait: bool) -> bool:
        """Let the others see that this rank has reached a phase, and return whether all have."""
        spins = _SPINS if wait else 0
        return self._sync.join(self.words, self.ranks, self.me, call, phase, spins, self._patience)

    def was_announced(self, call: int, *, wait: bool) -> bool:
        """Return whether the first rank has announced something for a call."""
        spins = _SPINS if wait else 0
        me, phase = self.ranks, self._sync.ARRIVED
        return self._sync.reached(self.words, me, me + 1, call, phase, spins, self._patience)

    def phase(self, call: int, phase: int, name: str) -> Phase:
        """Return the moment when every rank of the node has reached a phase, to wait for."""
        return Phase(self, call, phase, name)

    def missing(self, call: int, phase: int) -> list[int]:
        """Return the ranks of the world that have not reached a phase."""
        found = (self._sync.reached(self.words, r, r + 1, call, phase, 0, 1) for r in range(self.ranks))
        return [rank for rank, there in zip(self.members, found, strict=True) if not there]

    def progress(self) -> None:
        """Let MPI work on what other ranks may be waiting for, such as a user's message, and other processes run."""
        self._world.Iprobe()
        os.sched_yield()

    def wait(self, condition: Callable[[], bool], missing: Callable[[], list[int]], what: str) -> None:
        """Wait until ``condition``, which does some waiting itself, holds."""
        watch: Watch | None = None
        while not condition():
            self.progress()
            if watch is None:
                watch = self.watch()
            watch.look(missing, what)

    def gather(self, item: Any) -> list[Any]:
        """Return every rank's item; collective over the node."""
        return self._node.allgather(item)

    def watch(self) -> Watch:
        """Return what says whom this rank waits for, from now on."""
        return Watch(self.stall, self._world.rank)

    def free(self) -> None:
        """Give the memory back; collective over the node."""
        del self.words, self.window
        self._block.release()
        self._block.free()


class Watch:
    """Says whom a rank waits for, when that takes long.

    Args:
        stall: Seconds before it speaks, and between repetitions.
        rank: This rank.
    """

    def __init__(self, stall: float, rank: int) -> None:
        self._stall = stall
        self._rank = rank
        self._next = monotonic() + stall
        self._began = monotonic()

    def look(self, missing: Callable[[], list[int]], what: str) -> None:
        """Warn, by the logger "sfb", if it is time."""
        now = monotonic()
        if now < self._next:
            return
        self._next = now + self._stall
        ranks = missing()
        whom = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "other ranks"
        _log.warning("rank %d has waited %.0f s in %s for %s", self._rank, now - self._began, what, whom)


class Phase:
    """The moment when every rank of the node has reached a phase of a call; waited for like an MPI request."""

    def __init__(self, board: Board, call: int, phase: int, name: str) -> None:
        self._board = board
        self._call = call
        self._phase = phase
        self._name = name

    def Test(self) -> bool:
        """Return whether it has come."""
        return self._board.reached(self._call, self._phase)

    def Wait(self) -> None:
        """Wait for it."""
        board, call, phase = self._board, self._call, self._phase
        if not board.reached(call, phase, wait=True):
            board.wait(lambda: board.reached(call, phase, wait=True), lambda: board.missing(call, phase), self._name)
