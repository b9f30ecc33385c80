"""One exchange as every rank sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sfb.runtime.limits import EAGER_LIMIT, MAX_BYTES
from sfb.tuning.profile import Place, Use

__all__ = ["Problem", "spread"]

# Bytes of a rank's factors up to which they are packed into one message.
_PACKED = 1 << 15


def spread(ranks: int, nodes: int) -> list[int]:
    """Return the node of each of ``ranks`` ranks that fill ``nodes`` nodes in turn, as evenly as can be."""
    return [rank * nodes // ranks for rank in range(ranks)]


@dataclass(frozen=True)
class Problem:
    """Shapes and places of one exchange of factors; equal on all ranks.

    Attributes:
        shape: (K, D).
        dtype: Of factors and receiver.
        counts: S of each rank, int64.
        node_of: The node of each rank.
        passes: Reads and writes of a K×D array by the receiver.
        sharing: Ranks per core where ranks outnumber cores.
        shared: Whether the receiver has one copy per node, rather than one per rank.
        assigns: Whether the receiver is an array that is set to the sum.
        max_bytes: Ceiling of a rank's buffers.
        whole: Whether the receiver must see the factors of all ranks at once.
        wire: Format of 16 bits in which factors travel, if not their own.
        memo: Where algorithms keep what they would compute again in every call.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    counts: np.ndarray = field(repr=False)
    node_of: Sequence[int] = field(repr=False)
    passes: int
    sharing: float = 1.0
    shared: bool = False
    assigns: bool = True
    max_bytes: int = MAX_BYTES
    whole: bool = False
    wire: str | None = None
    memo: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def place(self) -> Place:
        """How the ranks lie."""
        nodes = max(self.node_of) + 1
        fullest = int(np.bincount(self.node_of).max())
        return Place(len(self.node_of), fullest, nodes, self.sharing)

    @property
    def ranks(self) -> int:
        """P."""
        return len(self.node_of)

    @cached_property
    def depth(self) -> int:
        """Samples of all ranks together."""
        return int(self.counts.sum())

    @cached_property
    def deepest(self) -> int:
        """Samples of the rank that has most."""
        return int(self.counts.max(initial=0))

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each rank's samples begin in the order of ranks."""
        return np.concatenate(([0], np.cumsum(self.counts)[:-1]))

    @cached_property
    def uniform(self) -> bool:
        """Whether all ranks have the same S."""
        return bool((self.counts == self.counts[0]).all())

    @cached_property
    def spans(self) -> tuple[np.ndarray, ...]:
        """How many samples come from each rank, and where they begin; nothing where all have as many."""
        return () if self.uniform else (self.counts, self.offsets)

    @cached_property
    def by_columns(self) -> bool:
        """Whether `sharded` divides columns rather than rows: the longer side."""
        return self.shape[1] > self.shape[0]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @cached_property
    def dense_bytes(self) -> int:
        """Bytes of a K×D array."""
        return self.shape[0] * self.shape[1] * self.itemsize

    @cached_property
    def sample_bytes(self) -> int:
        """Bytes of one sample's factors."""
        return sum(self.shape) * self.itemsize

    @property
    def sent_itemsize(self) -> int:
        """Bytes of an element of gathered factors on their way between ranks."""
        return self.itemsize if self.wire is None else 2

    @cached_property
    def packed(self) -> bool:
        """Whether u and v of a rank travel as one message: latency is dearer than copying."""
        return self.uniform and self.fits and int(self.counts[0]) * self.sample_bytes <= _PACKED

    @property
    def alone(self) -> bool:
        """Whether ranks, several of them, are nodes, so that the agreement may take along what they send."""
        return 1 < self.ranks == self.place.nodes and self.wire is None

    @property
    def room(self) -> int:
        """Bytes that a rank may send with its header: whatever others send, the messages of all have room then."""
        return EAGER_LIMIT // self.ranks // 8 * 8

    def carried(self, nbytes: int) -> bool:
        """Return whether so many bytes of each rank go with the headers of the agreement."""
        return self.alone and self.fits and nbytes <= self.room

    @staticmethod
    def carried_cost(nbytes: float) -> list[Use]:
        """Return the price of what is `carried`: its bytes, but no message beside the agreement's."""
        return [Use("allgather", nbytes), Use("allgather", times=-1)]

    @cached_property
    def share(self) -> float:
        """Part of the receiver's rows that the busiest rank works: all, or its share of a node's copy."""
        rows, parts = self.shape[0], self.place.ranks_per_node
        if not self.shared or rows == 0:
            return 1.0
        return -(-rows // parts) / rows

    @cached_property
    def row_blocks(self) -> list[tuple[int, int]]:
        """Rows whose factors travel and are applied together: all, unless the ceiling is in the way."""
        rows = self.shape[0]
        if self.fits:
            return [(0, rows)]
        if self.sample_blocks == 1:
            room = self.max_bytes - self.depth * self.shape[1] * self.itemsize
            high = room // (self.depth * self.itemsize)
        else:
            high = self._panel_rows
        high = max(1, high)
        return [(low, min(low + high, rows)) for low in range(0, rows, high)]

    @cached_property
    def sample_edges(self) -> list[np.ndarray]:
        """Where the parts of each rank's samples begin and end."""
        return [self.counts * part // self.sample_blocks for part in range(self.sample_blocks + 1)]

    @cached_property
    def sample_blocks(self) -> int:
        """Parts into which each rank's samples are cut: 1, unless v of all ranks is beyond half the ceiling."""
        gathered = self.depth * self.shape[1] * self.itemsize
        if self.fits or gathered <= self.max_bytes // 2:
            return 1
        block = self.depth * (self._panel_rows + self.shape[1]) * self.itemsize
        return max(1, min(self.deepest, -(-block // (self.max_bytes // 2))))

    @cached_property
    def fits(self) -> bool:
        """Whether the factors of all ranks stay below the ceiling; those of a single rank are not copied."""
        return self.ranks == 1 or self.depth * self.sample_bytes <= self.max_bytes

    @property
    def _panel_rows(self) -> int:
        """Rows of a sum that is put together from several parts of the samples."""
        return min(self.shape[0], max(1, self.max_bytes // 4 // max(1, self.shape[1] * self.itemsize)))

    def product_cost(self, depth: float, rows: float = 1.0, columns: float = 1.0, times: float = 1.0) -> list[Use]:
        """Return the work of a product of a part of the rows and of the columns, which reads both factors once."""
        elements = self.shape[0] * self.shape[1] * rows * columns * self.itemsize / 4
        read = depth * (self.shape[0] * rows + self.shape[1] * columns) * self.itemsize
        return [Use("rebuild", elements, depth, times), Use("pass", read, times=times)]

    def rebuild_cost(self, depth: float, part: float = 1.0) -> list[Use]:
        """Return the work of rebuilding ``part`` of the receiver's rows at a depth, and updating them."""
        # What is only written costs as much as what is read, too: caches fetch it first.
        more = max(0, self.passes - 2)
        return [*self.product_cost(depth, part), Use("pass", more * self.dense_bytes * part)]
