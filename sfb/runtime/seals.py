"""Seals: what a message between nodes is and how long, and its checksum, by which the receiver finds it damaged.

A seal has four words: format and kind (`sfb.kernels.header.stamp`), a number that no other message has at this place,
the bytes of the contents, and their checksum (`sfb.kernels.checksum`). Messages within a node need none: they are
copies in memory. The rounds between leaders have seals of their own (`sfb.kernels.rounds`).
"""

from __future__ import annotations

import os

import numpy as np

from sfb.kernels import header
from sfb.kernels.stages import compiled
from sfb.runtime.errors import as_reported

__all__ = ["BYTES", "WORDS", "DamagedMessageError", "are_on", "checksum", "fault", "padded", "seal"]

WORDS = 4
BYTES = 8 * WORDS

_VARIABLE = "SFB_CHECKSUMS"


@as_reported
class DamagedMessageError(RuntimeError):
    """A message from another node has arrived damaged, cut, twice, or not as what was due.

    Attributes:
        note: What the leader of a node tells its ranks of the damage (`sfb.kernels.rounds`).

    >>> import sfb
    >>> issubclass(sfb.DamagedMessageError, RuntimeError)
    True
    """

    note = 0


def are_on() -> bool:
    """Return whether messages have checksums: the environment variable SFB_CHECKSUMS, 1 by default.

    Without them the format, the kind, the number and the length of messages are still compared.

    Raises:
        ValueError: The variable is neither 0 nor 1.
    """
    value = os.environ.get(_VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{_VARIABLE} must be 0 or 1, got {value!r}")
    return value == "1"


def padded(nbytes: int) -> int:
    """Return the bytes that contents take before the seal behind them."""
    return nbytes + -nbytes % 8


def checksum(array: np.ndarray) -> int:
    """Return the checksum of a C-contiguous array."""
    return compiled("checksum").checksum(array.__array_interface__["data"][0], array.nbytes, 0)


def seal(words: np.ndarray, kind: int, number: int, contents: np.ndarray, *, checked: bool) -> None:
    """Write the seal of a message.

    Args:
        words: Four int64.
        kind: The kind of the message (`sfb.kernels.header`).
        number: A number of less than 64 bits that its receiver expects.
        contents: A C-contiguous array.
        checked: Whether messages have checksums.
    """
    words[:] = header.stamp(kind), number, contents.nbytes, checksum(contents) if checked else 0


def fault(words: np.ndarray, kind: int, number: int, contents: np.ndarray, *, checked: bool) -> str:
    """Return what is wrong with a message that has arrived, in words that follow its name; "" if nothing is.

    Arguments are those of `seal`, as the receiver expects them.
    """
    stamp, its, nbytes, total = words.tolist()
    if stamp != header.stamp(kind):
        known, given = header.stamp(0) >> 32, stamp >> 32
        if given >> 16 == known >> 16 and given != known:
            formats = f"{given & 0xFFFF} instead of {known & 0xFFFF}"
            return f"has the format {formats}: another version of sfb, or damage on its way"
        return "is none that was due, or damaged on its way"
    if its != number:
        return f"has the number {its} where {number} was due: it came twice, one before it was lost, or it was damaged"
    if nbytes != contents.nbytes:
        return f"says that it has {nbytes} bytes where {contents.nbytes} came: it was cut, or damaged on its way"
    if checked and total != checksum(contents):
        return f"was damaged on its way: the checksum of its {nbytes} bytes differs"
    return ""
