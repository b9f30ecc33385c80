"""Entries, which travel between ranks: updates, ends of clocks, farewells; and messages of several entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

import numpy as np

__all__ = ["ABORT", "CLOCK", "DENSE", "END", "UPDATE", "Entry", "csr_samples", "csr_size", "pack", "padded", "unpack"]

UPDATE, CLOCK, END, ABORT = range(4)

# The size of a dense update. Below it lie the sizes of updates by factors with CSR v.
DENSE = -1

_HEADER = Struct("=iiqiiqqqd")
_COUNT = Struct("=q")


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
    """

    __slots__ = (
        "clock", "hop", "kind", "magnitude", "number", "origin", "payload", "sending", "size", "source", "table",
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


def padded(nbytes: int) -> int:
    """Return ``nbytes`` rounded up to the alignment of the next item in a message."""
    return nbytes + -nbytes % 8


def pack(entries: Sequence[Entry]) -> np.ndarray:
    """Return a message of these entries, the hop of each increased by one."""
    message = np.empty(_COUNT.size + sum(entry.nbytes for entry in entries), np.uint8)
    _COUNT.pack_into(message, 0, len(entries))
    at = _COUNT.size
    for e in entries:
        length = e.payload.nbytes
        head = e.kind, e.origin, e.clock, e.table, e.hop + 1, e.number, e.size, length, e.magnitude
        _HEADER.pack_into(message, at, *head)
        at += _HEADER.size
        message[at : at + length] = e.payload
        at += padded(length)
    return message


def unpack(message: np.ndarray, source: int) -> Iterable[Entry]:
    """Yield the entries of a message from rank ``source``; their payloads are views of the message."""
    (count,) = _COUNT.unpack_from(message, 0)
    at = _COUNT.size
    for _ in range(count):
        kind, origin, clock, table, hop, number, size, length, magnitude = _HEADER.unpack_from(message, at)
        at += _HEADER.size
        yield Entry(kind, origin, clock, table, hop, number, size, magnitude, message[at : at + length], source)
        at += padded(length)
