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
    "tag",
]

# Default ceiling of a rank's buffers for one exchange, in bytes.
MAX_BYTES = 1 << 30

# Payloads of all ranks together, in bytes, up to which they travel beside the headers of the agreement.
EAGER_LIMIT = 1 << 17

# Bytes from which a sum in the rounds of the agreement is divided among nodes: bandwidth then costs more than messages.
HALVING_LIMIT = 1 << 14

# Most elements of one message: what a C int counts, where MPI has no larger counts.
MAX_COUNT = (1 << 31) - 1

# Exchanges that may be under way at once, and calls of plain arrays meanwhile: together, and once more for ranks that
# are ahead, fewer than the slots in the ring of a board (sfb.kernels.header.RING).
PENDING_CALLS, PENDING_ARRAYS = 24, 8

# Seconds that a rank waits for others before it warns.
STALL = 60.0

# Looks for a message between two looks at the clock.
SPINS = 1024

# Tags that MPI guarantees.
TAGS = 32768


def tag(number: int) -> int:
    """Return the tag of the messages of a call."""
    return number % TAGS
