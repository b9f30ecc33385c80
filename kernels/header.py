"""The layout of headers, by which ranks announce a call to each other: on the board of a node, and in messages.

On a *board*, the page of shared memory on which the ranks of a node post headers, each rank has `RING` slots of
`BOARD_WORDS` words; call n uses slot n mod `RING`. A message between nodes has a head and a payload. The head holds the
`WORDS` words of the header of each rank of the sending node, then `TAIL` words: the format, the number of the call, the
kind and the bytes of the payload, and the checksum of all other words.
"""

__all__ = [
    "BLOCK",
    "BOARD_WORDS",
    "CALL",
    "CREDIT",
    "DIGEST",
    "ENTRIES",
    "FAILED",
    "FAREWELL",
    "FAULT",
    "FORMAT",
    "KIND",
    "LOST",
    "NBYTES",
    "NOTE",
    "PLAIN",
    "REPLICA",
    "RING",
    "ROUND",
    "ROWS",
    "SEGMENT",
    "SIZE",
    "SIZES",
    "STAMP",
    "STATE",
    "SUM",
    "TAIL",
    "UNLIKE",
    "WORDS",
    "head_words",
    "message_words",
    "slot",
    "stamp",
]

# The words of a header: the digest of all that has to be equal on all ranks; the samples, or bytes, of the rank; and a
# note. On a board a fourth word holds the state, that is call and phase; a rank stores it last.
DIGEST, SIZE, NOTE, STATE = range(4)
WORDS, BOARD_WORDS = 3, 4
# The number of slots of a rank on a board.
RING = 64

# The last words of the head of a message, counted from its end: what the message is; the number of the call; the kind
# of the payload (0: none), and its bytes; the checksum of all other words.
STAMP, CALL, KIND, NBYTES, SUM = -5, -4, -3, -2, -1
TAIL = 5

# Set in the kind of a payload that ranks with unlike S send.
UNLIKE = 16

# The format of all messages between nodes. Any change of a layout changes it.
FORMAT = 1
_MAGIC = 0x5FB5 << 48

# The kinds of messages: of the rounds between leaders; rows and sizes that a collective of MPI brings; a segment of a
# plain array, or the word that one was damaged; entries and credits of the store; a replica, or a farewell, of model
# averaging; a block of a model.
ROUND, ROWS, SIZES, SEGMENT, LOST, ENTRIES, CREDIT, REPLICA, FAREWELL, BLOCK = range(1, 11)

# Digests below it stand for plain arrays.
PLAIN = 0
# The digest of a rank whose own arguments are wrong, above all others.
FAILED = (1 << 63) - 1
# The digest of a node whose message has arrived damaged; the note of its first header says where.
FAULT = FAILED - 1


def stamp(kind):
    """Return the word by which a receiver tells the format and the kind of a message."""
    return _MAGIC | FORMAT << 32 | kind


def slot(rank, call):
    """Return the index of the first word of a rank's slot on a board."""
    return (rank * RING + call % RING) * BOARD_WORDS


def head_words(ranks):
    """Return the words of a message before its payload, for up to ``ranks`` ranks on a node."""
    return WORDS * ranks + TAIL


def message_words(head, nbytes):
    """Return the words of a message with a payload of ``nbytes``."""
    return head + (nbytes + 7) // 8
