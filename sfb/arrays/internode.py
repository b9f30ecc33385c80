"""Allreduce of plain arrays between nodes: a ring, in segments of which several are in flight.

A message of the ring is a part of a segment and its seal (`sfb.runtime.seals`). A rank that finds one damaged goes on,
since others wait for its messages, and says so in them; all that learn of it raise at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from os import sched_yield
from time import sleep
from typing import TypeAlias

import numpy as np
from mpi4py import MPI

from sfb.kernels.header import LOST, SEGMENT, stamp
from sfb.runtime import seals
from sfb.runtime.limits import array_tag
from sfb.runtime.seals import DamagedMessageError
from sfb.runtime.team import Team

__all__ = ["NodeRings", "RingRequest", "Segment", "cuts"]

# Segments in flight, and the least and the most bytes of a message. The messages under way fill the link while a
# segment is reduced, and while another process has the core: 512 KiB take 4 ms at 1 Gbit/s. With 1 MiB and more under
# way, messages of 64 MiB arrays wait for each other in the links.
_IN_FLIGHT, _MESSAGE = 4, (1 << 13, 1 << 17)
# Looks for messages before a waiting rank sleeps, about as long as a sleep takes; the seconds of a sleep. A rank that
# polls keeps the core from the kernel's network stack and from other ranks.
_LOOKS, _SLEEP = 16, 2e-5
# Looks between two looks at the clock.
_TESTS = 256
# The stamp of a message after damage: its last word holds what is known of that.
_LOST = stamp(LOST)
_MOST = (1 << 62) - 1

# This rank's part, where the result goes, maybe the same array, and what to call when the result is there.
Segment: TypeAlias = "tuple[np.ndarray, np.ndarray, Callable[[], None]]"


class NodeRings:
    """Allreduce between nodes: for each slot, a ring of the ranks that have it on their nodes.

    An array travels in segments, each by the ring algorithm (Patarasuk and Yuan, JPDC 2009): every node sends and
    receives 2(N−1)/N of its bytes, and has one stream of messages into its link and one out of it. Streams of all peers
    into one link at once, as in an all-to-all exchange, would queue up in it and starve others.

    Args:
        team: The ranks, equally many on each node.

    Attributes:
        mates: The ranks of this node, in the order of their slots.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        slot, home = team.slot_of[team.rank], team.node_of[team.rank]
        peers = sorted(
            (rank for rank in range(team.size) if team.slot_of[rank] == slot), key=lambda rank: team.node_of[rank]
        )
        self._nodes = len(peers)
        self._me = peers.index(team.rank)
        self._left, self._right = peers[self._me - 1], peers[(self._me + 1) % self._nodes]
        self.mates = sorted(
            (rank for rank in range(team.size) if team.node_of[rank] == home), key=lambda rank: team.slot_of[rank]
        )
        self._slot = slot
        self._memory: list[np.ndarray] = []
        self._running: deque[RingRequest] = deque()

    @staticmethod
    def serves(team: Team) -> bool:
        """Return whether there are several nodes, with equally many ranks on each."""
        return team.nodes > 1 and len({team.node_of.count(node) for node in range(team.nodes)}) == 1

    def segment_bytes(self, nbytes: int) -> int:
        """Return the most bytes of a segment where each rank of a node has ``nbytes`` bytes to reduce."""
        least, most = _MESSAGE
        return self._nodes * max(least, min(most, nbytes // (self._nodes * _IN_FLIGHT)))

    def reserve(self, nbytes: int, *, on_node: bool) -> None:
        """Allocate memory for the messages of segments of up to ``nbytes`` bytes a rank.

        Args:
            nbytes: What `segment_bytes` returned.
            on_node: Whether the ranks of a node send each other messages, too.
        """
        message = seals.padded(-(-nbytes // self._nodes) + 8) + seals.BYTES  # parts differ by an element
        needed = 16 + (2 * nbytes if on_node else 0) + 2 * message
        if not self._memory or self._memory[0].size < needed:
            self._memory = [np.empty(needed, np.uint8) for _ in range(_IN_FLIGHT)]

    def begin(
        self, number: int, call: str, reduction: np.ufunc, segments: Iterator[Segment], *, on_node: bool
    ) -> RingRequest:
        """Begin to reduce segment by segment; `reserve` has been called.

        Args:
            number: Number of the call.
            call: The user's call, for messages.
            reduction: Reduces two arrays; `numpy.add` for a sum.
            segments: Yields segments when they are to start, equally many of equal sizes on all ranks. What each calls
                at its end is called in the order of segments.
            on_node: Whether the ranks of a node pass whole segments, which they reduce and gather by messages; if not,
                they pass their parts of the node's sum.
        """
        sources = {self._left, *(self.mates if on_node else [])} - {self._team.rank}
        reduce = partial(self._whole if on_node else self._ring, reduction)
        return RingRequest(self, number, call, reduce, sorted(sources), segments)

    def _ring(
        self, reduction: np.ufunc, wire: _Wire, tag: int, memory: np.ndarray, send: np.ndarray, recv: np.ndarray
    ) -> Iterator[list[MPI.Request]]:
        """Reduce among the ranks of this slot; yield the requests of one step after another."""
        world, nodes, me = self._team.world, self._nodes, self._me
        parts = [slice(low, high) for low, high in pairwise(cuts(send.size, nodes))]
        room = memory.size // 16 * 8
        out, into = memory[:room], memory[room : 2 * room]
        # Sums of parts go round: this rank passes on its own part first, then what it has added to.
        part = me
        passed = out[: send[parts[me]].nbytes].view(send.dtype)
        np.copyto(passed, send[parts[me]])
        for step in range(1, nodes):
            leaving = wire.seal(out, passed.nbytes, part)
            part = (me - step) % nodes
            term = send[parts[part]]
            arriving = into[: seals.padded(term.nbytes) + seals.BYTES]
            yield [world.Irecv(arriving, self._left, tag), world.Isend(leaving, self._right, tag)]
            total = wire.open(into, term, part)
            passed = out[: term.nbytes].view(term.dtype)
            with np.errstate(over="ignore", invalid="ignore"):  # sums of infinities, or of a damaged message
                reduction(total, term, out=passed)
        # Now the last is a result; results go round, each with the seal of the rank that formed it.
        np.copyto(recv[parts[part]], passed)
        leaving = wire.seal(out, passed.nbytes, nodes + part)
        for step in range(nodes - 1):
            part = (me - step) % nodes
            target = recv[parts[part]]
            arriving = into[: seals.padded(target.nbytes) + seals.BYTES]
            yield [world.Irecv(arriving, self._left, tag), world.Isend(leaving, self._right, tag)]
            np.copyto(target, wire.open(into, target, nodes + part))
            leaving = wire.pass_on(arriving)
            out, into = into, out

    def _whole(
        self, reduction: np.ufunc, wire: _Wire, tag: int, memory: np.ndarray, send: np.ndarray, recv: np.ndarray
    ) -> Iterator[list[MPI.Request]]:
        """Reduce among all ranks: each reduces a part of the segment on its node, then in its ring, and sends it."""
        world, mates, slot = self._team.world, self.mates, self._slot
        most = -(-send.size // len(mates))
        parts = [slice(min(i * most, send.size), min((i + 1) * most, send.size)) for i in range(len(mates))]
        mine = recv[parts[slot]]
        others = [i for i in range(len(mates)) if i != slot]
        total, term, room = _divide(memory, mine)
        sent = [world.Isend(send[parts[i]], mates[i], tag) for i in others]
        for i in range(len(mates)):
            target = term if i else total
            if i == slot:
                np.copyto(target, send[parts[slot]])
            else:
                yield [world.Irecv(target, mates[i], tag)]
            if i:
                with np.errstate(over="ignore", invalid="ignore"):
                    reduction(total, term, out=total)
        yield sent
        np.copyto(mine, total)
        yield from self._ring(reduction, wire, tag, room, mine, mine)
        received = [world.Irecv(recv[parts[i]], mates[i], tag) for i in others]
        yield received + [world.Isend(mine, mates[i], tag) for i in others]


class RingRequest:
    """An exchange of `NodeRings` under way, for which a rank waits as for an MPI request.

    Exchanges run one after another, in the order in which they began.

    Args:
        rings: The rings.
        number: Number of the call.
        call: The user's call, for messages.
        reduce: Makes the steps of a segment, of its seals, its tag, its memory, what is sent and what is received.
        sources: The ranks whose messages may be missing.
        segments: Yields segments.
    """

    def __init__(
        self,
        rings: NodeRings,
        number: int,
        call: str,
        reduce: Callable[[_Wire, int, np.ndarray, np.ndarray, np.ndarray], Iterator[list[MPI.Request]]],
        sources: list[int],
        segments: Iterator[Segment],
    ) -> None:
        self._board = rings._team.board
        self._running = rings._running
        self._left = rings._left
        self._memory = rings._memory
        self._number = number
        self._call = call
        self._reduce = reduce
        self._sources = sources
        self._damage = _Damage(rings._team, number, call)
        self._segments = segments
        self._in_flight: deque[_InFlight] = deque()
        self._begun = 0
        self._more = True
        self._running.append(self)

    @property
    def done(self) -> bool:
        """Whether the whole result is there."""
        return not (self._more or self._in_flight)

    def Test(self) -> bool:
        """Go on without waiting, and return whether the whole result is there."""
        while not self.done and self._running[0] is self and self._advance():
            pass
        return self.done

    def Wait(self) -> None:
        """Wait for the whole result; no older exchange is under way."""
        idle, watch = 0, None
        while not self.done:
            if self._advance():
                idle = 0
                continue
            idle += 1
            self._rest(idle)
            if idle % _TESTS == 0:
                watch = watch or self._board.watch()
                watch.look(lambda: self._sources, self._call)

    def _advance(self) -> bool:
        """Start segments and take them a step forward, as far as possible; return whether any went on."""
        try:
            moved = self._start()
            for segment in self._in_flight:
                moved |= segment.advance()
            if self._in_flight and self._in_flight[0].done:
                self._in_flight.popleft().then()
                moved = True
        except BaseException:
            self._running.remove(self)
            raise
        if self.done:
            self._running.remove(self)
            self._damage.raise_if_any()
            return False
        return moved

    def _rest(self, idle: int) -> None:
        """Leave the core to others, after so many looks in vain."""
        if idle < _LOOKS:
            sched_yield()
            return
        try:
            sleep(_SLEEP)
        except BaseException:  # an interrupt: later exchanges do not wait for this one
            self._running.remove(self)
            raise

    def _start(self) -> bool:
        started = False
        while self._more and len(self._in_flight) < _IN_FLIGHT:
            following = next(self._segments, None)
            if following is None:
                self._more = False
                return True
            # Segments of the same lane follow each other, so that their messages keep the order of their tag.
            lane = self._begun % _IN_FLIGHT
            send, recv, then = following
            wire = _Wire(self._damage, self._number << 20 | self._begun, self._left)
            steps = self._reduce(wire, array_tag(self._number, lane, _IN_FLIGHT), self._memory[lane], send, recv)
            self._in_flight.append(_InFlight(steps, then))
            self._begun += 1
            started = True
        return started


class _Damage:
    """What is known of damaged messages in an exchange.

    Args:
        team: The ranks.
        number: Number of the call.
        call: The user's call, for messages.

    Attributes:
        checked: Whether messages have checksums.
        note: 2³² times the rank that found the damage, and the rank that sent the message; 0 if there is none.
    """

    def __init__(self, team: Team, number: int, call: str) -> None:
        self._team = team
        self._number = number
        self._call = call
        self.checked = team.checked
        self.note = 0
        self._wrong = ""

    def find(self, sender: int, wrong: str) -> None:
        """Note that a message has arrived damaged."""
        if not self.note:
            self.learn(self._team.rank << 32 | sender)
            self._wrong = wrong

    def learn(self, note: int) -> None:
        """Note what another rank has found, and tell the ranks of the node."""
        if not self.note:
            self.note = note
            self._wrong = "was damaged, cut or repeated on its way"
            self._team.board.mark(self._number, note)

    def raise_if_any(self) -> None:
        """Raise DamagedMessageError if this rank, or another of its node, knows of damage."""
        board = self._team.board
        if not self.note and board.ranks > 1:
            self.learn(max(board.marks(self._number)))
        if self.note:
            finder, sender = self.note >> 32, self.note & 0xFFFFFFFF
            raise DamagedMessageError(
                f"{self._call}: the message of rank {sender} to rank {finder} {self._wrong}; do not use the result"
            )


class _Wire:
    """The seals of the messages of one segment.

    Args:
        damage: What is known of damaged messages.
        number: A number that stands for call and segment.
        left: The rank from which messages come.
    """

    __slots__ = ("_damage", "_left", "_number")

    def __init__(self, damage: _Damage, number: int, left: int) -> None:
        self._damage = damage
        self._number = number << 12 & _MOST
        self._left = left

    def seal(self, memory: np.ndarray, nbytes: int, which: int) -> np.ndarray:
        """Return the message whose contents, so many bytes, lie at the beginning of ``memory``, with its seal."""
        at = seals.padded(nbytes)
        words = memory[at : at + seals.BYTES].view(np.int64)
        seals.seal(words, SEGMENT, self._number + which, memory[:at], checked=self._damage.checked)
        return self.pass_on(memory[: at + seals.BYTES])

    def open(self, memory: np.ndarray, like: np.ndarray, which: int) -> np.ndarray:
        """Return the contents of the message that has arrived in ``memory``, damaged or not."""
        at, damage = seals.padded(like.nbytes), self._damage
        words = memory[at : at + seals.BYTES].view(np.int64)
        if int(words[0]) == _LOST and int(words[1]) == self._number + which:
            damage.learn(int(words[3]))
        else:
            wrong = seals.fault(words, SEGMENT, self._number + which, memory[:at], checked=damage.checked)
            if wrong:
                damage.find(self._left, wrong)
                words[1] = self._number + which
        return memory[: like.nbytes].view(like.dtype)

    def pass_on(self, message: np.ndarray) -> np.ndarray:
        """Return a message, which says that one was damaged if this rank knows of that."""
        if self._damage.note:
            words = message[-seals.BYTES :].view(np.int64)
            words[0], words[3] = _LOST, self._damage.note
        return message


class _InFlight:
    """A segment in flight.

    Args:
        steps: Yields the requests of each step.
        then: What to call when the result is there.

    Attributes:
        done: Whether the whole result is there.
    """

    __slots__ = ("_requests", "_steps", "done", "then")

    def __init__(self, steps: Iterator[list[MPI.Request]], then: Callable[[], None]) -> None:
        self._steps = steps
        self.then = then
        self._requests: list[MPI.Request] = []
        self.done = False
        self._step()

    def advance(self) -> bool:
        """Take the next step if all messages of this one have arrived, and return whether they have."""
        if self.done or not MPI.Request.Testall(self._requests):
            return False
        self._step()
        return True

    def _step(self) -> None:
        following = next(self._steps, None)
        self.done = following is None
        self._requests = following or []


def cuts(size: int, parts: int) -> list[int]:
    """Return where each of so many parts of ``size`` elements begins, and where the last ends."""
    return [size * i // parts for i in range(parts + 1)]


def _divide(memory: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return two arrays in ``memory`` like another one, and the rest of it."""
    room = -(-like.nbytes // 8) * 8
    first, second = (memory[i * room : i * room + like.nbytes].view(like.dtype) for i in range(2))
    return first, second, memory[2 * room :]
