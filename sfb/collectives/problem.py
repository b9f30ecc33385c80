"""The problem of an exchange: its shapes, and the layout of its ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sfb.kernels import sparse
from sfb.runtime.limits import EAGER_LIMIT, MAX_BYTES
from sfb.tuning.profile import Place, Use

__all__ = ["Problem", "Spread", "fill_nodes"]

# Bytes of a rank's factors up to which u and v travel as one message.
_PACKED = 1 << 15
# The cost of sparse products, in bytes that a core passes over in the same time: of ordering a non-zero by column; and
# in elements, of a non-zero and of a column that has some, in each row of the product.
_ORDERED, _ADDED, _TOUCHED = 120, 0.6, 3.0


def fill_nodes(ranks: int, nodes: int) -> list[int]:
    """Return the node of each rank, if ranks in their order fill nodes as evenly as possible.

    >>> from sfb.collectives.problem import fill_nodes
    >>> fill_nodes(5, 2)
    [0, 0, 0, 1, 1]
    """
    return [rank * nodes // ranks for rank in range(ranks)]


class Spread(NamedTuple):
    """The unlike S of ranks that one plan serves.

    The ends of a spread are a quarter apart at most. Hence a few plans serve the batches of a training run whose ranks
    have other numbers of samples in each step.

    Attributes:
        depth: The most samples of all ranks together.
        deepest: The most samples of the rank that has the most.

    >>> import numpy as np
    >>> from sfb.collectives.problem import Spread
    >>> Spread.of(np.array([130, 121, 140])), Spread.of(np.array([125, 141, 140]))
    (Spread(depth=448, deepest=160), Spread(depth=448, deepest=160))
    """

    depth: int
    deepest: int

    @classmethod
    def of(cls, counts: np.ndarray) -> Spread:
        """Return the spread in which S of each rank lie."""
        return cls(_rounded_up(int(counts.sum())), _rounded_up(int(counts.max())))

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """The least and the most samples of all ranks together, and of the rank that has the most."""
        return 1 + _rounded_down(self.depth - 1), self.depth, 1 + _rounded_down(self.deepest - 1), self.deepest

    def counts(self, ranks: int) -> np.ndarray:
        """Return the S of each rank for which the plan is made: as many as in any call, and not all the same.

        >>> from sfb.collectives.problem import Spread
        >>> Spread(depth=448, deepest=160).counts(3)
        array([144, 144, 160])
        """
        most = np.full(ranks, -(-max(0, self.depth - self.deepest) // (ranks - 1)), np.int64)
        most[-1] = self.deepest
        if (most == self.deepest).all():
            most[-1] += 1
        return most


def _rounded_up(number: int) -> int:
    """Return the next number whose binary digits after the third are 0."""
    step = 1 << max(0, number.bit_length() - 3)
    return -(-number // step) * step


def _rounded_down(number: int) -> int:
    """Return the last number before, or this one, whose binary digits after the third are 0."""
    step = 1 << max(0, number.bit_length() - 3)
    return number // step * step


@dataclass(frozen=True)
class Problem:
    """The shapes of one exchange of factors and the layout of its ranks; equal on all ranks.

    The problem of a plan that serves calls with unlike S has the most samples (`Spread`); `of_call` returns that of a
    call.

    Attributes:
        shape: (K, D).
        dtype: The dtype of factors and receiver.
        counts: S of each rank, int64.
        node_of: The node of each rank.
        passes: The number of reads and writes of a K×D array by the receiver.
        sharing: Ranks per core where ranks outnumber cores.
        shared: Whether the receiver has one copy per node, rather than one per rank.
        assigns: Whether the receiver is an array that is set to the sum.
        max_bytes: The ceiling of a rank's buffers, in bytes.
        whole: Whether the receiver must see the factors of all ranks at once.
        wire: The 16-bit format in which factors travel; None for their own dtype.
        nonzeros: The non-zeros of each rank's v, int64, where v is CSR; else None.
        room: The non-zeros of all ranks for which there are buffers.
        skips_zeros: Whether the receiver leaves elements as they are whose sum is 0.
        spread: The unlike S that the plan serves; None if it serves ``counts`` alone.
        memo: Values that algorithms compute once and reuse in later calls.
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
    nonzeros: np.ndarray | None = field(default=None, repr=False)
    room: int = 0
    skips_zeros: bool = False
    spread: Spread | None = None
    memo: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    def of_call(self, counts: np.ndarray, nonzeros: np.ndarray | None = None) -> Problem:
        """Return the exchange of a call that this one's plan serves, with S and the non-zeros of each rank."""
        problem = replace(self, counts=counts, nonzeros=nonzeros)
        problem.__dict__["place"] = self.place
        return problem

    @cached_property
    def place(self) -> Place:
        """The layout of the ranks on nodes and cores."""
        return Place.of(self.node_of, self.sharing)

    @property
    def ranks(self) -> int:
        """P."""
        return len(self.node_of)

    @cached_property
    def depth(self) -> int:
        """The samples of all ranks together."""
        return int(self.counts.sum())

    @cached_property
    def deepest(self) -> int:
        """The samples of the rank that has the most."""
        return int(self.counts.max(initial=0))

    @cached_property
    def offsets(self) -> np.ndarray:
        """The first sample of each rank among all samples, in the order of ranks."""
        return np.concatenate(([0], np.cumsum(self.counts)[:-1]))

    @cached_property
    def uniform(self) -> bool:
        """Whether all ranks have the same S."""
        return bool((self.counts == self.counts[0]).all())

    @cached_property
    def spans(self) -> tuple[np.ndarray, ...]:
        """`counts` and `offsets`; empty where all ranks have the same S."""
        return () if self.uniform else (self.counts, self.offsets)

    @cached_property
    def by_columns(self) -> bool:
        """Whether `sharded` divides columns, as they are more than rows."""
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
        """Bytes of an element of a factor while it travels between ranks."""
        return self.itemsize if self.wire is None else 2

    @cached_property
    def packed(self) -> bool:
        """Whether u and v of a rank travel as one message, as a copy costs less than a latency."""
        return self.uniform and self.fits and int(self.counts[0]) * self.sample_bytes <= _PACKED

    @property
    def one_rank_per_node(self) -> bool:
        """Whether there are several nodes of one rank each, whose payloads may travel beside their headers."""
        return 1 < self.ranks == self.place.nodes and self.wire is None

    @property
    def eager_limit(self) -> int:
        """The bytes that each rank may send beside its header, whatever the other ranks send."""
        return EAGER_LIMIT // self.ranks // 8 * 8

    def eager(self, nbytes: int) -> bool:
        """Return whether payloads of up to ``nbytes`` from each rank travel beside the headers of the agreement."""
        return self.one_rank_per_node and self.fits and nbytes <= self.eager_limit

    @staticmethod
    def eager_cost(nbytes: float) -> list[Use]:
        """Return the cost of an eager payload: its bytes, in messages that the agreement sends anyway."""
        return [Use("allgather", nbytes), Use("allgather", times=-1)]

    @cached_property
    def share(self) -> float:
        """The part of the receiver's rows that the busiest rank updates: all, or its share of the node's copy."""
        rows, parts = self.shape[0], self.place.ranks_per_node
        if not self.shared or rows == 0:
            return 1.0
        return -(-rows // parts) / rows

    @cached_property
    def row_blocks(self) -> list[tuple[int, int]]:
        """The ranges of rows whose factors travel together: one of all rows, or more to stay within `max_bytes`."""
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
        """The sample at which each part of each rank begins, and at the end S of each rank."""
        return [self.counts * part // self.sample_blocks for part in range(self.sample_blocks + 1)]

    @cached_property
    def sample_blocks(self) -> int:
        """The number of parts into which each rank divides its samples: 1, or more if v exceeds half of `max_bytes`."""
        gathered = self.depth * self.shape[1] * self.itemsize
        if self.fits or gathered <= self.max_bytes // 2:
            return 1
        block = self.depth * (self._panel_rows + self.shape[1]) * self.itemsize
        return max(1, min(self.deepest, -(-block // (self.max_bytes // 2))))

    @cached_property
    def fits(self) -> bool:
        """Whether the factors of all ranks stay within `max_bytes`; a rank on its own copies none."""
        nbytes = self.depth * self.sample_bytes if self.nonzeros is None else self.most_bytes
        return self.ranks == 1 or nbytes <= self.max_bytes

    @cached_property
    def stored(self) -> int:
        """The elements of v of all ranks that are stored, S·D each unless v is CSR."""
        return self.depth * self.shape[1] if self.nonzeros is None else int(self.nonzeros.sum())

    @cached_property
    def words(self) -> tuple[np.ndarray, np.ndarray]:
        """The words of each rank's message, where v is CSR, and the word at which it begins among those of all."""
        sizes = sparse.message_words(self.counts, self.nonzeros, self.shape[0], self.itemsize)
        return sizes, np.concatenate(([0], np.cumsum(sizes)[:-1]))

    @cached_property
    def message_bytes(self) -> int:
        """The bytes of all messages, where v is CSR."""
        return 8 * int(self.words[0].sum())

    @cached_property
    def most_bytes(self) -> int:
        """The bytes of all messages, where v is CSR, with as many non-zeros as there is room for."""
        empty = 8 * int(sparse.message_words(self.counts, 0, self.shape[0], self.itemsize).sum())
        return empty + 24 * self.ranks + -(-self.room * (4 + self.itemsize) // 8) * 8

    @property
    def _panel_rows(self) -> int:
        """The rows of a sum to which the parts of the samples are added one after the other."""
        return min(self.shape[0], max(1, self.max_bytes // 4 // max(1, self.shape[1] * self.itemsize)))

    def product_cost(self, depth: float, rows: float = 1.0, columns: float = 1.0, times: float = 1.0) -> list[Use]:
        """Return the cost of forming parts of the rows and columns of a product, which reads both factors once."""
        if self.nonzeros is not None:
            return [*self._sparse_cost(depth, rows, times), Use("pass", self.dense_bytes * rows, times=times)]
        elements = self.shape[0] * self.shape[1] * rows * columns * self.itemsize / 4
        read = depth * (self.shape[0] * rows + self.shape[1] * columns) * self.itemsize
        return [Use("rebuild", elements, depth, times), Use("pass", read, times=times)]

    def rebuild_cost(self, depth: float, part: float = 1.0) -> list[Use]:
        """Return the cost of rebuilding ``part`` of the receiver's rows from ``depth`` samples, and updating them."""
        if self.nonzeros is not None:
            passes = 0 if self.skips_zeros else self.passes
            return [*self._sparse_cost(depth, part, 1.0), Use("pass", passes * self.dense_bytes * part)]
        # The product counts two passes: caches fetch memory before they write it.
        more = max(0, self.passes - 2)
        return [*self.product_cost(depth, part), Use("pass", more * self.dense_bytes * part)]

    def _sparse_cost(self, depth: float, rows: float, times: float) -> list[Use]:
        """Return the cost of the sums of a product with CSR v, in ``rows`` of all rows."""
        entries, columns = self.stored * depth / max(1, self.depth), max(1, self.shape[1])
        touched = columns * -math.expm1(-entries / columns)  # of non-zeros at random
        elements = self.shape[0] * rows * (_ADDED * entries + _TOUCHED * touched)
        # Every rank orders all non-zeros, once, whatever its rows.
        return [Use("pass", _ORDERED * entries), Use("pass", elements * self.itemsize, times=times)]
