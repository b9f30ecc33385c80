"""Damage messages between nodes by flipped bits, cuts and repeats, and count those that their receivers find.

    python tests/support/damage_messages.py --times 10000

All nodes live in this process. Exits with 1 if a message went unnoticed, if its sender was not named, or if a rank that
raised no error holds a wrong result.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, deque

import numpy as np
from mpi4py import MPI
from one_process import FakeMPI, run

from sfb.arrays.internode import NodeRings
from sfb.kernels import eager, header, rounds, rules, scratch_for, status
from sfb.runtime import limits, seals
from sfb.runtime.rounds import schedule
from sfb.runtime.seals import DamagedMessageError
from sfb.schedule.blocks import PackedBlock
from sfb.store import entry
from sfb.store.entry import UPDATE, Entry

__all__ = ["CHANNELS", "DAMAGES", "damaged"]

DAMAGES = ("flip", "burst", "cut", "repeat")


def damaged(how: str, message: bytes, before: bytes | None, rng: np.random.Generator) -> bytes | None:
    """Return a message as it arrives damaged; None if it cannot be damaged in that way.

    Args:
        how: One bit, or a burst of random bytes, changes; the end is cut off; or the message before comes once more.
        message: The message.
        before: The message before on the same way.
        rng: Draws the damage.
    """
    array = np.frombuffer(message, np.uint8).copy()
    if how == "repeat":
        return before if before is not None and before != message and len(before) <= len(message) else None
    if how == "cut":
        return message[: int(rng.integers(0, len(message) - 8))] if len(message) > 8 else None
    at = int(rng.integers(array.size))
    if how == "flip":
        array[at] ^= 1 << int(rng.integers(8))
    else:
        array[at : at + 16] ^= rng.integers(1, 256, len(array[at : at + 16])).astype(np.uint8)
    return array.tobytes()


class Damaging:
    """Damages one of the messages that pass.

    Args:
        how: The damage.
        which: The number of the message among those that pass; if it cannot be damaged, the next is.
        rng: Draws the damage.

    Attributes:
        sender: The rank that sent the damaged message; None while there is none.
    """

    def __init__(self, how: str, which: int, rng: np.random.Generator) -> None:
        self._how, self._left, self._rng = how, which, rng
        self._before: dict[object, bytes] = {}
        self.sender: int | None = None

    def __call__(self, sender: int, way: object, message: bytes) -> bytes:
        before, self._before[way] = self._before.get(way), message
        self._left -= 1
        if self.sender is not None or self._left >= 0:
            return message
        result = damaged(self._how, message, before, self._rng)
        if result is None or result == message:
            return message
        self.sender = sender
        return result


class Rounds(FakeMPI):
    """Eager exchanges: headers and payloads in the rounds of the agreement, of 2 to 5 nodes."""

    def __init__(self) -> None:
        super().__init__()
        self._damage = lambda sender, way, message: message
        self._exchanges = [
            _Exchange(self, payload, nodes, columns)
            for payload, nodes, columns in (
                (eager.SUM, 2, 5),
                (eager.SUM, 4, 5),
                (eager.SUM, 4, 1200),  # divided among nodes
                (eager.PRODUCTS, 3, 5),
                (eager.FACTORS, 4, 5),
                (eager.FACTORS, 5, 5),
            )
        ]
        self._tag = 0

    def arriving(self, channel, message):
        source, target, _ = channel
        return self._damage(source, (source, target), message)

    def trial(self, how, rng):
        """Return whether the damage was found, named, and without a wrong result; None if nothing was damaged."""
        exchange = self._exchanges[int(rng.integers(len(self._exchanges)))]
        self._tag += 1
        exchange.draw(rng)
        if how == "repeat":  # there has to be a message before
            self._damage = damage = Damaging(how, 10**9, rng)
            exchange.go(self._tag)
            self._tag += 1
            exchange.draw(rng)
            damage._left = int(rng.integers(4))
        else:
            self._damage = damage = Damaging(how, int(rng.integers(4)), rng)
        codes = exchange.go(self._tag)
        self._damage = lambda sender, way, message: message
        self._mail.clear()
        if damage.sender is None:
            return None
        right = all(
            np.array_equal(w, exchange.total) for w, code in zip(exchange.w, codes, strict=True) if code == status.DONE
        )
        notes = {int(state[rounds.WRONG]) for state, code in zip(exchange.state, codes, strict=True) if code < 0}
        return status.DAMAGED in codes, {note & 0xFFFFFFFF for note in notes} == {damage.sender}, right


class _Exchange:
    """Nodes of one rank that exchange integers eagerly."""

    def __init__(self, mpi, payload, nodes, columns, rows=4, samples=2):
        self._nodes, self._samples, self._shape = nodes, samples, (rows, columns)
        self.w = [np.zeros((rows, columns), np.float32) for _ in range(nodes)]
        self.state, self._bound, self._kept = [], [], []
        nbytes = 4 * (samples * (rows + columns) if payload == eager.FACTORS else rows * columns)
        head = header.head_words(1)
        for node in range(nodes):
            words, more = np.zeros((2, nodes * (head + -(-nbytes // 8)) + 8192), np.int64)
            if payload == eager.FACTORS:
                one, two = (np.empty((nodes * samples, n), np.float32) for n in (rows, columns))
            else:
                one = two = np.empty((rows, columns), np.float32)
            kept = mpi.functions(node), schedule([[n] for n in range(nodes)], node), words, more, one, two
            self._kept.append(kept)
            self._bound.append(eager.bind(payload, head, samples, nbytes, *kept))
            self.state.append(np.zeros(rounds.STATE, np.int64))

    def draw(self, rng):
        size = self._nodes, self._samples
        self._u, self._v = (rng.integers(-99, 99, (*size, n)).astype(np.float32) for n in self._shape)
        self.total = np.einsum("rsk,rsd->kd", self._u, self._v)

    def go(self, tag):
        rule, memory = rules.assign(), scratch_for(100, self.w[0])
        numbers = rule.kind, *rule.linear, rule.numbers(np.dtype(np.float32)), 1 + rule.states

        def call(node):
            w, state = self.w[node], self.state[node]
            arrays = self._u[node], self._v[node], w, w, w
            return lambda: eager.exchange(self._bound[node], state, 0, tag, 77, *arrays, *numbers, memory)

        for state in self.state:
            state[:] = 0
        return run([call(node) for node in range(self._nodes)])


class Ring:
    """Plain arrays in a ring of 3 nodes, in several segments."""

    def __init__(self, nodes: int = 3) -> None:
        self._nodes = nodes
        self._damage = lambda sender, way, message: message
        self._rings = []
        for rank in range(nodes):
            ring = NodeRings(_Team(rank, nodes, self))
            ring.reserve(ring.segment_bytes(1), on_node=False)
            self._rings.append(ring)
        self._number = 0

    def sent(self, source, target, message):
        return self._damage(source, (source, target), message)

    def trial(self, how, rng):
        """Return whether the damage was found, named, and without a wrong result; None if nothing was damaged."""
        damage = Damaging(how, int(rng.integers(30)), rng)
        arrays = rng.integers(-99, 99, (self._nodes, 5000)).astype(np.float32)
        total = arrays.sum(axis=0)
        errors = {rank: str(error) for rank, error in self.reduce(damage, arrays).items()}
        if damage.sender is None:
            return None
        named = {int(re.search(r"message of rank (\d+)", text)[1]) for text in errors.values()}
        right = all(np.array_equal(arrays[rank], total) for rank in range(self._nodes) if rank not in errors)
        return bool(errors), named == {damage.sender}, right

    def reduce(self, damage, arrays):
        """Sum an array of each rank in place, while ``damage`` changes messages; return the errors that ranks raise."""
        self._number += 1
        self._damage = damage
        most = 1500
        requests = [
            ring.begin(
                self._number,
                "Allreduce",
                np.add,
                iter([(array[low : low + most],) * 2 + (lambda: None,) for low in range(0, array.size, most)]),
                on_node=False,
            )
            for ring, array in zip(self._rings, arrays, strict=True)
        ]
        errors, left = {}, deque(range(self._nodes))
        for _ in range(10**6):
            rank = left.popleft()
            try:
                if not requests[rank].Test():
                    left.append(rank)
            except DamagedMessageError as error:
                errors[rank] = error
            if not left:
                break
        assert not left, "the ring never ends"
        return errors


class _Team:
    """A rank of a team whose ranks live in this process, each on a node of its own."""

    def __init__(self, rank, size, ring):
        self.rank, self.size, self.nodes, self.checked = rank, size, size, True
        self.node_of, self.slot_of = list(range(size)), [0] * size
        self.world, self.board = _World(rank, size, ring), _Board()


class _Board:
    ranks = 1

    def mark(self, call, note):
        pass


class _World:
    """Messages of real MPI, from this process to itself."""

    def __init__(self, rank, size, ring):
        self._rank, self._size, self._ring, self._kept = rank, size, ring, deque(maxlen=1000)

    def _tag(self, source, target, tag):
        return ((tag - limits.TAGS) % 4 * self._size + source) * self._size + target

    def Irecv(self, buffer, source, tag):
        return MPI.COMM_SELF.Irecv([buffer, MPI.BYTE], 0, self._tag(source, self._rank, tag))

    def Isend(self, buffer, target, tag):
        message = self._ring.sent(self._rank, (target, tag), buffer.tobytes())
        self._kept.append(message)
        return MPI.COMM_SELF.Isend([message, MPI.BYTE], 0, self._tag(self._rank, target, tag))


class _Contents:
    """Messages whose receiver has all of it before it looks."""

    def trial(self, how, rng):
        """Return whether the damage was found, named, and without a wrong result; None if nothing was damaged."""
        sender = int(rng.integers(8))
        before, message = self.make(rng, 4), self.make(rng, 5)
        arrived = damaged(how, message, before, rng)
        if arrived is None or arrived == message:
            return None
        try:
            self.open(np.frombuffer(arrived, np.uint8).copy(), sender)
        except DamagedMessageError as error:
            return True, f"rank {sender} " in str(error), True
        return False, False, False


class Entries(_Contents):
    """Messages of the store's entries."""

    def make(self, rng, number):
        entries = [
            Entry(UPDATE, int(rng.integers(8)), number, payload=rng.integers(0, 256, n).astype(np.uint8))
            for n in rng.integers(0, 500, rng.integers(1, 5))
        ]
        return entry.pack(entries, number).tobytes()

    def open(self, message, sender):
        entry.unpack(message, sender, 5, ranks=8, hops=3)


class Credits(_Contents):
    """Messages that return credits."""

    def make(self, rng, number):
        return entry.pack_credits(rng.integers(0, 1 << 40, 3), number).tobytes()

    def open(self, message, sender):
        entry.credits_of(message, sender, 5, 3)


class Blocks(_Contents):
    """Blocks of a model."""

    FORM = (((7,), "<f4"), ((2, 3), "<f8"))

    def make(self, rng, number):
        block = PackedBlock(number, self.FORM)
        block.buffer[:] = 0x5A  # between arrays, too: a cut that leaves the same bytes is no damage
        block.fill([rng.standard_normal(7), rng.standard_normal((2, 3))]).send(self, 0, 1, 9, checked=True)
        return block.buffer.tobytes()

    def Isend(self, piece, target, tag):
        pass

    def open(self, message, sender):
        block = PackedBlock(5, self.FORM)
        block.buffer[:] = 0xFF
        block.buffer[: message.size] = message  # MPI writes what arrives, and no more
        block.open(sender, 9, checked=True)


class Rows(_Contents):
    """Rows of factors, u and v of several algorithms and the messages of CSR v, and their seals."""

    def make(self, rng, number):
        rows, words = rng.standard_normal((3, 40)).astype(np.float32), np.empty(seals.WORDS, np.int64)
        seals.seal(words, header.ROWS, number, rows, checked=True)
        return rows.tobytes() + words.tobytes()

    def open(self, message, sender):
        table = np.zeros(3 * 160 + seals.BYTES, np.uint8)
        table[: message.size] = message
        words, rows = table[-seals.BYTES :].view(np.int64), table[: -seals.BYTES]
        wrong = seals.fault(words, header.ROWS, 5, rows, checked=True)
        if wrong:
            raise DamagedMessageError(f"the message of rank {sender} {wrong}")


CHANNELS = (Rounds, Ring, Entries, Credits, Blocks, Rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10_000, help="messages to damage, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, failed, total = np.random.default_rng(options.seed), 0, 0
    each = -(-options.times // (len(CHANNELS) * len(DAMAGES)))
    for channel in (made() for made in CHANNELS):
        name = type(channel).__name__
        for how in DAMAGES:
            counts: Counter[str] = Counter()
            for _ in range(20 * each):
                if counts["damaged"] == each:
                    break
                result = channel.trial(how, rng)
                if result is not None:
                    counts["damaged"] += 1
                    for what, true in zip(("found", "named", "right"), result, strict=True):
                        counts[what] += true
            print(name, how, *(f"{counts[what]} {what}" for what in ("damaged", "found", "named", "right")), sep="  ")
            total += counts["damaged"]
            failed += 3 * counts["damaged"] - counts["found"] - counts["named"] - counts["right"]
    print(f"{total} messages damaged, {failed} failures")
    return int(failed > 0 or total < options.times)


if __name__ == "__main__":
    sys.exit(main())
