"""Limits and tags that several modules share."""

from __future__ import annotations

import os

__all__ = [
    "EAGER_LIMIT",
    "FAILURE_TAG",
    "HALVING_LIMIT",
    "MAX_BYTES",
    "MAX_COUNT",
    "NO_TAG",
    "PENDING_ARRAYS",
    "PENDING_CALLS",
    "SPINS",
    "STALL",
    "TAGS",
    "TIMEOUT",
    "array_tag",
    "tag",
    "timeout_or_default",
]

# Bytes of a rank's buffers for one exchange, unless the user sets another ceiling.
MAX_BYTES = 1 << 30

# The eager limit: bytes of the payloads of all ranks together up to which they travel beside the headers of the
# agreement.
EAGER_LIMIT = 1 << 17

# Bytes from which a sum in the rounds of the agreement is divided among nodes: from there on, bytes cost more than
# messages.
HALVING_LIMIT = 1 << 14

# Elements of one message at most: an int of C counts them, in MPIs without large counts.
MAX_COUNT = (1 << 31) - 1

# Exchanges that may be under way at once, and calls of plain arrays beside them. A rank may be that many calls ahead of
# another, so twice their sum has to be at most the slots in the ring of a board (sfb.kernels.header.RING).
PENDING_CALLS, PENDING_ARRAYS = 24, 8

# Seconds that a rank waits for others before it warns.
STALL = 60.0

# Seconds that a rank waits for others before it fails, as in torch.distributed.
TIMEOUT = 1800.0

# Looks for a message before a waiting rank looks at the clock.
SPINS = 1024

# Half the number of tags that MPI guarantees: one half for the rounds of the agreement, one for plain arrays. Messages
# about failures have the last tag, and no message has the one before.
TAGS = 32768 // 2
FAILURE_TAG = 2 * TAGS - 1
NO_TAG = 2 * TAGS - 2


def tag(number: int) -> int:
    """Return the tag of the messages of a call between leaders."""
    return number % TAGS


def array_tag(number: int, lane: int, lanes: int) -> int:
    """Return the tag of the messages of a plain array in a call, in one of its ``lanes`` ≥ 2 streams of messages."""
    return TAGS + (number * lanes + lane) % (TAGS - lanes)


def timeout_or_default(timeout: float | None) -> float:
    """Return the seconds that a rank waits for others before it fails: ``timeout``, SFB_TIMEOUT, or `TIMEOUT`.

    Raises:
        ValueError: It is not a number of seconds above 0.
    """
    text = os.environ.get("SFB_TIMEOUT", "")
    given, name = (text or TIMEOUT, "SFB_TIMEOUT") if timeout is None else (timeout, "timeout")
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"{name} must be a number of seconds > 0, got {given!r}")
    return seconds
