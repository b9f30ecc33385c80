"""What travels between ranks: updates, ends of clocks, and messages that carry many of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

import numpy as np

__all__ = ["ABORT", "CLOCK", "END", "UPDATE", "Entry", "pack", "unpack"]

UPDATE, CLOCK, END, ABORT = range(4)

_HEADER = Struct("=iiqiiqqqd")
_COUNT = Struct("=q")


class Entry:
    """One thing that its origin tells all ranks.

    Attributes:
        kind: UPDATE of a table; CLOCK, the origin has ended a clock; END, it has closed the store; ABORT, it failed.
        origin: Rank that it comes from.
        clock: That it was made in.
        table: Number of the table.
        hop: Edges that it has travelled.
        number: Of the origin's entries.
        size: Samples of an update by factors, −1 for a dense one; updates of the clock for CLOCK.
        magnitude: How much it changes, for priorities.
        payload: Its bytes: u and then v, the dense update, or the text of an ABORT.
        source: Rank that it was received from; this one for its own.
        sending: Neighbours that it has yet to be sent to.
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
        """Bytes of a message that it takes."""
        return _HEADER.size + _whole(self.payload.nbytes)


_EMPTY = np.empty(0, np.uint8)


def _whole(nbytes: int) -> int:
    """Round up, so that what follows is aligned."""
    return nbytes + -nbytes % 8


def pack(entries: Sequence[Entry]) -> np.ndarray:
    """Return a message of these entries, each one hop further."""
    message = np.empty(_COUNT.size + sum(entry.nbytes for entry in entries), np.uint8)
    _COUNT.pack_into(message, 0, len(entries))
    at = _COUNT.size
    for e in entries:
        length = e.payload.nbytes
        head = e.kind, e.origin, e.clock, e.table, e.hop + 1, e.number, e.size, length, e.magnitude
        _HEADER.pack_into(message, at, *head)
        at += _HEADER.size
        message[at : at + length] = e.payload
        at += _whole(length)
    return message


def unpack(message: np.ndarray, source: int) -> Iterable[Entry]:
    """Yield the entries of a message; their payloads are parts of it."""
    (count,) = _COUNT.unpack_from(message, 0)
    at = _COUNT.size
    for _ in range(count):
        kind, origin, clock, table, hop, number, size, length, magnitude = _HEADER.unpack_from(message, at)
        at += _HEADER.size
        yield Entry(kind, origin, clock, table, hop, number, size, magnitude, message[at : at + length], source)
        at += _whole(length)
