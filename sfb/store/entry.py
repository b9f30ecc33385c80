"""Entries, which travel between ranks: updates, ends of clocks, farewells; and messages of several entries.

A message is a seal (`sfb.runtime.seals`), the number of its entries, and the entries, each a header and its payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import numpy as np

from sfb.kernels import header
from sfb.runtime import seals
from sfb.runtime.seals import DamagedMessageError, padded

__all__ = [
    "ABORT",
    "CLOCK",
    "DENSE",
    "END",
    "UPDATE",
    "Entry",
    "credits_of",
    "csr_samples",
    "csr_size",
    "pack",
    "pack_credits",
    "unpack",
]

UPDATE, CLOCK, END, ABORT = range(4)

# The size of a dense update. Below it lie the sizes of updates by factors with CSR v.
DENSE = -1

_HEADER = Struct("=iiqiiqqqd")
_COUNT = Struct("=q")
_FIRST = seals.BYTES + _COUNT.size  # where the entries of a message begin


class Entry:
    """A message of one rank, its origin, to all others.

    Attributes:
        kind: UPDATE of a table; CLOCK, the origin has ended a clock; END, it has closed the store; ABORT, it failed.
        origin: The rank that made the entry.
        clock: The origin's clock at that time.
        table: The number of the table of an UPDATE.
        hop: The number of edges that the entry has travelled.
        number: The number of an UPDATE among those of its origin and clock.
        size: Samples of an UPDATE by factors, `csr_size` of these if v is CSR, `DENSE` for a dense one; for CLOCK the
            number of updates of the clock.
        magnitude: The size of the change, for priorities.
        payload: Bytes: u and then v, with CSR v what `sfb.kernels.sparse.pack` writes, the dense update, or the text
            of an ABORT; for CLOCK the settings of the origin's rules, if it has changed them.
        source: The rank from which this rank received the entry; −1 for its own.
        sending: The number of neighbours to which this rank has yet to send the entry.
        occupies: Whether the entry takes room of the relay: of this rank's own entries, or its sender's window.
    """

    __slots__ = (
        "clock", "hop", "kind", "magnitude", "number", "occupies", "origin", "payload", "sending", "size", "source",
        "table",
    )  # fmt: skip

    def __init__(
        self,
        kind: int,
        origin: int,
        clock: int,
        table: int = 0,
        hop: int = 0,
        number: int = 0,
        size: int = 0,
        magnitude: float = 0.0,
        payload: np.ndarray | None = None,
        source: int = -1,
    ) -> None:
        self.kind = kind
        self.origin = origin
        self.clock = clock
        self.table = table
        self.hop = hop
        self.number = number
        self.size = size
        self.magnitude = magnitude
        self.payload = _EMPTY if payload is None else payload
        self.source = source
        self.sending = 0
        self.occupies = True

    @property
    def nbytes(self) -> int:
        """The number of bytes that the entry takes in a message."""
        return _HEADER.size + padded(self.payload.nbytes)


_EMPTY = np.empty(0, np.uint8)


def csr_size(samples: int) -> int:
    """Return the size of an entry with so many samples of factors with CSR v."""
    return DENSE - 1 - samples


def csr_samples(size: int) -> int:
    """Return the samples of an entry with CSR v, given its size; below 0 for other entries."""
    return DENSE - 1 - size


def pack(entries: Sequence[Entry], number: int, *, checked: bool = True) -> np.ndarray:
    """Return a message of these entries, the hop of each increased by one.

    Args:
        entries: The entries.
        number: The number of the message among those of its sender to its receiver.
        checked: Whether the message has a checksum.
    """
    message = np.empty(_FIRST + sum(entry.nbytes for entry in entries), np.uint8)
    _COUNT.pack_into(message, seals.BYTES, len(entries))
    at = _FIRST
    for e in entries:
        length = e.payload.nbytes
        head = e.kind, e.origin, e.clock, e.table, e.hop + 1, e.number, e.size, length, e.magnitude
        _HEADER.pack_into(message, at, *head)
        at += _HEADER.size
        message[at : at + length] = e.payload
        message[at + length : at + padded(length)] = 0
        at += padded(length)
    _seal(message, header.ENTRIES, number, checked)
    return message


def unpack(
    message: np.ndarray, source: int, number: int, *, ranks: int, hops: int, checked: bool = True
) -> list[Entry]:
    """Return the entries of a message from rank ``source``; their payloads are views of the message.

    Args:
        message: Bytes.
        source: The rank that sent it.
        number: The number that the message must have.
        ranks: The number of ranks.
        hops: The most edges that an entry travels.
        checked: Whether the message has a checksum.

    Raises:
        DamagedMessageError: The message is damaged, cut, or not the one that was due.
    """
    _open(message, header.ENTRIES, source, number, checked)
    (count,) = _COUNT.unpack_from(message, seals.BYTES) if message.nbytes >= _FIRST else (-1,)
    at = _FIRST
    entries: list[Entry] = []
    while len(entries) < count and at + _HEADER.size <= message.nbytes:
        kind, origin, clock, table, hop, its, size, length, magnitude = _HEADER.unpack_from(message, at)
        at += _HEADER.size
        if not (UPDATE <= kind <= ABORT and 0 <= origin < ranks and 0 < hop <= hops):
            break
        if not 0 <= length <= message.nbytes - at:
            break
        entries.append(Entry(kind, origin, clock, table, hop, its, size, magnitude, message[at : at + length], source))
        at += padded(length)
    if len(entries) != count or at != message.nbytes:
        raise DamagedMessageError(f"the message of rank {source} is no message of {count} entries in its bytes")
    return entries


def pack_credits(owed: np.ndarray, number: int, *, checked: bool = True) -> np.ndarray:
    """Return a message that returns credits; arguments as in `pack`."""
    message = np.empty(seals.BYTES + owed.nbytes, np.uint8)
    message[seals.BYTES :].view(np.int64)[:] = owed
    _seal(message, header.CREDIT, number, checked)
    return message


def credits_of(message: np.ndarray, source: int, number: int, depth: int, *, checked: bool = True) -> np.ndarray:
    """Return the ``depth`` credits of a message; other arguments and errors as in `unpack`."""
    _open(message, header.CREDIT, source, number, checked)
    credits = message[seals.BYTES :].view(np.int64)
    if len(credits) != depth or (credits < 0).any():
        raise DamagedMessageError(f"the message of rank {source} holds no {depth} credits")
    return credits


def _seal(message: np.ndarray, kind: int, number: int, checked: bool) -> None:
    seals.seal(message[: seals.BYTES].view(np.int64), kind, number, message[seals.BYTES :], checked=checked)


def _open(message: np.ndarray, kind: int, source: int, number: int, checked: bool) -> None:
    wrong = f"has {message.nbytes} bytes, fewer than a message or no words: it was cut"
    if message.nbytes >= seals.BYTES and message.nbytes % 8 == 0:
        words = message[: seals.BYTES].view(np.int64)
        wrong = seals.fault(words, kind, number, message[seals.BYTES :], checked=checked)
    if wrong:
        raise DamagedMessageError(f"the message of rank {source} {wrong}")
