"""Messages between ranks, as functions of the bytes that arrive: a receiver takes them or raises what is documented."""

from __future__ import annotations

import json
import struct
import sys
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import numpy as np
from scipy.sparse import csr_array
from targets import Target

__all__ = ["messages"]

_RANKS, _DEPTH, _ROOM = 5, 3, 4096
_RECORD = struct.Struct("<BBH")  # flags, sender and length of a message among several


def messages(folder: Path) -> dict[str, Target]:
    """Return a target for each kind of message."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # where all ranks live in one process
    made: dict[str, Target] = {}
    for add in (_seals, _entries, _relay, _averaging, _blocks, _rounds, _ring, _failures):
        made |= add()
    return made


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).copy()


def _seals() -> dict[str, Target]:
    from sfb.kernels import header
    from sfb.runtime import seals

    def run(data: bytes) -> None:
        """Open rows behind a seal."""
        words = np.zeros(seals.WORDS, np.int64)
        words.view(np.uint8)[: len(data[: seals.BYTES])] = _bytes(data[: seals.BYTES])
        wrong = seals.fault(words, header.ROWS, 7, _bytes(data[seals.BYTES :]), checked=True)
        if wrong:
            raise seals.DamagedMessageError(wrong)

    seeds = []
    for size in (0, 1, 64, 999):
        words, rows = np.empty(seals.WORDS, np.int64), np.arange(size).astype(np.uint8)
        seals.seal(words, header.ROWS, 7, rows, checked=True)
        seeds.append(words.tobytes() + rows.tobytes())
    return {"seal": Target(run, (seals.DamagedMessageError,), tuple(seeds))}


def _contents(number: int) -> list[np.ndarray]:
    """Return messages with all kinds of entries of the tables that `_store` has."""
    from sfb.store.entry import ABORT, CLOCK, DENSE, END, UPDATE, Entry, pack
    from sfb.store.store import _payload

    u, v = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)
    dense = np.ones((3, 4), np.float32).reshape(-1).view(np.uint8)
    update = partial(Entry, UPDATE, 0, table=0, hop=0)
    factors, sparse = _payload(u, v), _payload(u, csr_array(v))
    lists = (
        [update(0, size=factors[0], payload=factors[1]), update(0, number=1, size=sparse[0], payload=sparse[1])],
        [update(0, size=DENSE, payload=dense), Entry(CLOCK, 0, 0, size=1)],
        [Entry(CLOCK, 0, 0, payload=np.frombuffer(b"'w' SGD(lr=0.2)", np.uint8)), Entry(END, 0, 1)],
        [Entry(ABORT, 0, 0, payload=np.frombuffer(b"ValueError: lost", np.uint8))],
        [],
    )
    return [pack(entries, number) for entries in lists]


def _entries() -> dict[str, Target]:
    from sfb.kernels import header
    from sfb.runtime import seals
    from sfb.runtime.seals import DamagedMessageError
    from sfb.store.entry import credits_of, pack_credits, unpack

    def entries(data: bytes) -> None:
        found = unpack(_bytes(data), 1, 7, ranks=_RANKS, hops=_DEPTH)
        assert sum(entry.nbytes for entry in found) <= len(data)

    def resealed(data: bytes) -> None:
        """Unpack contents that are damaged under a seal that fits."""
        message = np.zeros(seals.BYTES + len(data), np.uint8)
        message[seals.BYTES :] = _bytes(data)
        words = message[: seals.BYTES].view(np.int64)
        seals.seal(words, header.ENTRIES, 7, message[seals.BYTES :], checked=True)
        entries(message.tobytes())

    def credits(data: bytes) -> None:
        assert (credits_of(_bytes(data), 1, 7, _DEPTH) >= 0).all()

    seeds = tuple(message.tobytes() for message in _contents(7))
    returned = tuple(pack_credits(np.array(owed), 7).tobytes() for owed in ([0, 1, 2], [1 << 40, 0, 0]))
    refusals = (DamagedMessageError,)
    return {
        "entries": Target(entries, refusals, seeds),
        "resealed entries": Target(resealed, refusals, tuple(seed[seals.BYTES :] for seed in seeds)),
        "credits": Target(credits, refusals, returned),
    }


class _Request:
    """A request that is complete."""

    def Test(self) -> bool:
        return True


class _Message:
    """A message that has come, as mpi4py gives it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def Recv(self, buffer: list) -> None:
        assert len(buffer[0]) == len(self._data)
        memoryview(buffer[0])[:] = self._data

    def Irecv(self, buffer: list) -> _Request:
        self.Recv(buffer)
        return _Request()


class _World:
    """Rank 2 of a ring: it receives what a test has put into its inbox, and forgets what it sends."""

    rank, size = 2, _RANKS

    def __init__(self) -> None:
        self.inbox: deque[tuple[int, int, bytes]] = deque()

    def Improbe(self, source: int, tag: int, status: object) -> _Message | None:
        from mpi4py import MPI

        if not self.inbox:
            return None
        sender, its, data = self.inbox.popleft()
        status.Set_source(sender)  # type: ignore[attr-defined]
        status.Set_tag(its)  # type: ignore[attr-defined]
        status.Set_elements(MPI.BYTE, len(data))  # type: ignore[attr-defined]
        return _Message(data)

    def Isend(self, buffer: list, rank: int, tag: int) -> _Request:
        return _Request()


def _relay() -> dict[str, Target]:
    from sfb.kernels import header
    from sfb.optim import SGD
    from sfb.runtime import seals
    from sfb.runtime.seals import DamagedMessageError
    from sfb.store.base import StoreError
    from sfb.store.entry import pack_credits
    from sfb.store.priority import Priority
    from sfb.store.relay import Relay
    from sfb.store.replica import Replica, Table
    from sfb.store.settings import Settings
    from sfb.store.store import Store
    from sfb.store.timer import Timer
    from sfb.topology import create

    topology = create("ring", _RANKS)
    (before,), (after,) = topology.in_neighbours(2), topology.out_neighbours(2)

    def run(data: bytes) -> None:
        """Receive messages, entries of one neighbour and credits of the other, forward and apply them."""
        world, tables = _World(), [Table("w", np.zeros((3, 4), np.float32), SGD(lr=0.1))]
        replica = Replica(tables, _RANKS, ordered=bool(data[:1] > b"\x7f"), threads=1)
        store = SimpleNamespace(_failure=None, _replica=replica, _settings=Settings(tables, 2, _RANKS))
        store._compare = partial(Store._compare, store)
        relay = Relay(
            world, topology, partial(Store._deliver, store), priority=Priority(), bucket=None, max_bytes=_ROOM,
            timer=Timer(), checks=lambda rank: True,
        )  # fmt: skip
        numbers: dict[int, int] = defaultdict(int)
        at = 1
        while at + _RECORD.size <= len(data):
            flags, _, length = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            message = data[at : at + length]
            at += length
            source, tag = (after, 2) if flags & 1 else (before, 1)
            if flags & 2 and len(message) >= seals.BYTES:  # under a seal that fits
                array = _bytes(message)
                kind = header.CREDIT if flags & 1 else header.ENTRIES
                seals.seal(
                    array[: seals.BYTES].view(np.int64), kind, numbers[source], array[seals.BYTES :], checked=True
                )
                message = array.tobytes()
            numbers[source] += 1
            world.inbox.append((source, tag, message))
            relay.step(settle=bool(flags & 4))
            assert 0 <= relay.held <= 8 * (len(data) + _ROOM)
        if store._failure is not None:
            raise StoreError(store._failure)
        replica.apply()

    def record(flags: int, message: bytes) -> bytes:
        return _RECORD.pack(flags, 0, len(message)) + message

    first, *others = (message.tobytes() for message in _contents(0))
    stream = record(2, first) + record(2, others[0])
    returned = record(3, pack_credits(np.zeros(create("ring", _RANKS).diameter, np.int64), 0).tobytes())
    seeds = (
        b"\x00" + stream, b"\xff" + stream + returned, b"\x00" + record(4, first), b"\x00" + returned,
        *(b"\xff" + record(2, message) for message in others),
    )  # fmt: skip
    return {"relay": Target(run, (DamagedMessageError, StoreError), seeds)}


def _averaging() -> dict[str, Target]:
    from mpi4py import MPI

    from sfb.kernels import header
    from sfb.runtime import seals
    from sfb.runtime.seals import DamagedMessageError
    from sfb.store.averaging import AveragingStore

    model = 96  # bytes

    def run(data: bytes) -> None:
        """Receive a replica, or a farewell where the first byte is odd."""
        status = MPI.Status()
        status.Set_elements(MPI.BYTE, len(data[1:]))
        store = SimpleNamespace(_status=status, _model_bytes=model, _due={1: 7}, _checks=lambda rank: True)
        AveragingStore._receive(store, _Message(data[1:]), 1, 1 + data[0] % 2 if data else 1)

    seeds = []
    for first, kind, size in ((b"\0", header.REPLICA, model), (b"\1", header.FAREWELL, 60)):
        array = np.arange(size).astype(np.uint8)
        seals.seal(array[: seals.BYTES].view(np.int64), kind, 7, array[seals.BYTES :], checked=True)
        seeds.append(first + array.tobytes())
    return {"replica": Target(run, (DamagedMessageError,), tuple(seeds))}


def _blocks() -> dict[str, Target]:
    from damage_messages import Blocks

    from sfb.runtime.seals import DamagedMessageError

    blocks = Blocks()
    seed = blocks.make(np.random.default_rng(0), 5)

    def run(data: bytes) -> None:
        """Open a block of a rotation, of which MPI has written what came."""
        blocks.open(_bytes(data[: len(seed)]), 1)

    return {"block": Target(run, (DamagedMessageError,), (seed,))}


_Way = tuple[int, object]  # sender, and to whom


def _damage(before: dict[_Way, list[bytes]], data: bytes) -> Callable[[int, object, bytes], bytes]:
    """Return what arrives of the messages that pass: the one whose number is the first byte is as ``data`` says.

    The second byte says how: other bytes, the message's own with some of them changed, cut, or one that came before.

    Args:
        before: The messages that have come before on each way; the function adds its own.
        data: What is to happen.
    """
    which, how, rest = data[0] if data else 255, data[1] % 4 if len(data) > 1 else 0, data[2:]
    passed = 0

    def arrives(sender: int, way: object, message: bytes) -> bytes:
        nonlocal passed
        earlier = before.setdefault((sender, way), [])
        earlier.append(message)
        passed += 1
        if passed - 1 != which:
            return message
        if how == 0:
            return rest[: len(message)]
        if how == 1:
            array = _bytes(message)
            array[: len(rest)] ^= _bytes(rest[: len(message)])
            return array.tobytes()
        if how == 2:
            return message[: int.from_bytes(rest[:2], "little") % (len(message) + 1)]
        return earlier[rest[0] % len(earlier) if rest else 0][: len(message)]

    return arrives


_HOW = (
    b"\xff\x00", b"\x00\x01" + bytes(9) + b"\x40", b"\x01\x01" + bytes(60) + b"\x01", b"\x02\x02\x08\x00",
    b"\x01\x03\x00", b"\x00\x00" + bytes(64), b"\x01\x01",
)  # fmt: skip


def _rounds() -> dict[str, Target]:
    import damage_messages

    from sfb.kernels import status
    from sfb.runtime.seals import DamagedMessageError

    made: list[damage_messages.Rounds] = []

    def run(data: bytes) -> None:
        """Exchange headers and payloads between nodes, of which one arrives damaged."""
        if not made:  # compiles kernels
            made.append(damage_messages.Rounds())
        channel = made[0]
        exchange = channel._exchanges[data[-1] % len(channel._exchanges) if data else 0]
        channel._tag += 1
        exchange.draw(np.random.default_rng(0))
        before: dict[_Way, list[bytes]] = {}
        if data[1:2] and data[1] % 4 == 3:  # there have to be messages that came before
            channel._damage = _damage(before, b"")
            exchange.go(channel._tag)
            channel._tag += 1
            exchange.draw(np.random.default_rng(1))
        channel._damage = _damage(before, data)
        codes = exchange.go(channel._tag)
        channel._mail.clear()
        del channel._receives[1:]
        assert {*codes} <= {status.DONE, status.DAMAGED}, codes
        for w, code in zip(exchange.w, codes, strict=True):
            assert code != status.DONE or np.array_equal(w, exchange.total), "a wrong sum is taken"
        if status.DAMAGED in codes:
            raise DamagedMessageError("a message was damaged")

    return {"rounds": Target(run, (DamagedMessageError,), _HOW)}


def _ring() -> dict[str, Target]:
    import damage_messages

    from sfb.runtime.seals import DamagedMessageError

    made: list[damage_messages.Ring] = []
    before: dict[_Way, list[bytes]] = {}

    def run(data: bytes) -> None:
        """Reduce a plain array in a ring of nodes, one of whose messages arrives damaged."""
        if not made:
            made.append(damage_messages.Ring(2))
        arrays = np.ones((2, 5000), np.float32)
        errors = made[0].reduce(_damage(before, data), arrays)
        for messages in before.values():
            del messages[:-9]
        for rank, array in enumerate(arrays):
            assert rank in errors or (array == 2).all(), "a wrong sum is taken"
        for error in errors.values():
            raise error

    return {"ring": Target(run, (DamagedMessageError,), _HOW)}


def _failures() -> dict[str, Target]:
    from sfb.runtime.errors import RankFailedError
    from sfb.runtime.inquiry import Inquiry
    from sfb.runtime.processes import this_process

    def run(data: bytes) -> None:
        """Hear what ranks say of failures, and decide who has failed."""
        world = _World()
        found = Inquiry.__new__(Inquiry)
        found.__dict__.update(vars(Inquiry(SimpleNamespace(rank=2, size=1), 9.0)))  # type: ignore[arg-type]
        found._world, found.peers = world, [this_process()] * _RANKS  # type: ignore[assignment]
        world.inbox.extend((sender % _RANKS, 0, part) for sender, part in enumerate(data.split(b"\n")[:20]))
        found._hear()
        found._ask(monotonic() - 1e9, forward=False)
        found._conclude(monotonic())
        if found.failure is not None:
            raise found.failure

    said = (
        {"left": True}, {"failed": [[1, "is gone"]], "why": "it says so"}, {"ask": True},
        {"place": "train.py:3 (main)"},
        {"call": "Allreduce", "waited": 9.5, "missing": [3]},
    )  # fmt: skip
    texts = [json.dumps(each).encode() for each in said]
    return {"failures": Target(run, (RankFailedError,), (*texts, b"\n".join(texts), b"\n".join(texts[3:] * 3)))}
