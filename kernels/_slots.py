"""Slots of the memory by which the ranks of a node reduce plain arrays (a *window*): their sizes and addresses.

Each rank has two small slots, a block, and two large slots. Both slots of a size alternate, so that a rank fills one
while others still read the other. All sizes are bytes.
"""

from collections import namedtuple

from sfb.kernels._compile import inner
from sfb.kernels._lines import LINE, address, nbytes_of

__all__ = ["BLOCK", "FLAT", "Slots", "block", "large", "lay_out", "share", "small", "width_of", "window_bytes"]

# Up to so many bytes every rank reduces everything for itself, with one wait for the others.
FLAT = 8192
# What is reduced at once where it is stored twice, so that it stays in the first cache.
BLOCK = 8192
# A large slot, all large slots of a node together, and what a large slot is a multiple of.
_SLOT, _SLOTS, _PAGE = 1 << 19, 1 << 25, 1 << 12

# Address of a window, bytes of a large slot, ranks of the node, and this rank's number.
Slots = namedtuple("Slots", "address large ranks me")


def window_bytes(ranks):
    """Return the bytes of a window of so many ranks.

    The large slots have 1 MiB a rank, or 32 MiB of all ranks (128 bytes for every two of more than 512 ranks).
    """
    large = -(-max(LINE * ranks, min(_SLOT, _SLOTS // (2 * ranks))) // _PAGE) * _PAGE
    return ranks * (2 * FLAT + BLOCK + 2 * large)


@inner
def lay_out(window, ranks, me):
    """Return the slots of a window."""
    return Slots(address(window), (nbytes_of(window) // ranks - 2 * FLAT - BLOCK) // 2, ranks, me)


@inner
def small(slots, parity, rank):
    """Return the address of a rank's small slot of even or odd calls."""
    return slots.address + (parity * slots.ranks + rank) * FLAT


@inner
def block(slots):
    """Return the address of this rank's block."""
    return slots.address + 2 * slots.ranks * FLAT + slots.me * BLOCK


@inner
def large(slots, parity, rank):
    """Return the address of a rank's large slot of even or odd chunks."""
    first = slots.address + slots.ranks * (2 * FLAT + BLOCK)
    return first + (parity * slots.ranks + rank) * slots.large


@inner
def share(nbytes, width, rank):
    """Return where a rank's share of a chunk begins and ends: in the same place of each slot for all chunks."""
    return min(rank * width, nbytes), min((rank + 1) * width, nbytes)


@inner
def width_of(nbytes, most, ranks):
    """Return the bytes of a rank's share of a chunk, in whole lines, where a chunk has at most so many."""
    line = ranks * LINE
    chunks = max(1, -(-nbytes // (most // line * line)))
    return max(1, -(-nbytes // (chunks * line))) * LINE
