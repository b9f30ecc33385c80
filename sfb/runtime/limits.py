"""Limits and tags that several modules share."""

from __future__ import annotations

__all__ = [
    "EAGER_LIMIT",
    "HALVING_LIMIT",
    "MAX_BYTES",
    "MAX_COUNT",
    "PENDING_ARRAYS",
    "PENDING_CALLS",
    "SPINS",
    "STALL",
    "TAGS",
    "array_tag",
    "tag",
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

# Looks for a message before a waiting rank looks at the clock.
SPINS = 1024

# Half the number of tags that MPI guarantees: one half for the rounds of the agreement, one for plain arrays.
TAGS = 32768 // 2


def tag(number: int) -> int:
    """Return the tag of the messages of a call between leaders."""
    return number % TAGS


def array_tag(number: int, lane: int, lanes: int) -> int:
    """Return the tag of the messages of a plain array in a call, in one of its ``lanes`` streams of messages."""
    return TAGS + (number * lanes + lane) % TAGS
