"""The layout of headers, by which ranks announce a call to each other: on the board of a node, and in messages.

On a *board*, the page of shared memory on which the ranks of a node post headers, each rank has `RING` slots of
`BOARD_WORDS` words; call n uses slot n mod `RING`. A message between nodes has a head and a payload. The head holds the
`WORDS` words of the header of each rank of the sending node, then the kind of the payload and its bytes.
"""

__all__ = [
    "BOARD_WORDS",
    "DIGEST",
    "FAILED",
    "KIND",
    "NBYTES",
    "NOTE",
    "PLAIN",
    "RING",
    "SIZE",
    "STATE",
    "WORDS",
    "head_words",
    "message_words",
    "slot",
]

# The words of a header: the digest of all that has to be equal on all ranks; the samples, or bytes, of the rank; and a
# note. On a board a fourth word holds the state, that is call and phase; a rank stores it last.
DIGEST, SIZE, NOTE, STATE = range(4)
WORDS, BOARD_WORDS = 3, 4
# The number of slots of a rank on a board.
RING = 64

# The last words of the head of a message, counted from its end: the kind of the payload (0: none), and its bytes.
KIND, NBYTES = -2, -1

# Digests below it stand for plain arrays.
PLAIN = 0
# The digest of a rank whose own arguments are wrong, above all others.
FAILED = (1 << 63) - 1


def slot(rank, call):
    """Return the index of the first word of a rank's slot on a board."""
    return (rank * RING + call % RING) * BOARD_WORDS


def head_words(ranks):
    """Return the words of a message before its payload, for up to ``ranks`` ranks on a node."""
    return WORDS * ranks + 2


def message_words(head, nbytes):
    """Return the words of a message with a payload of ``nbytes``."""
    return head + (nbytes + 7) // 8
