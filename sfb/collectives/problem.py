"""One exchange as every rank sees it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

import sfb.kernels as kernels
from sfb.receiver import Receiver
from sfb.shared import Block
from sfb.team import Team

__all__ = ["Problem", "Timing", "settle", "update"]


class Timing(NamedTuple):
    """Seconds that one exchange took on this rank: communication, and rebuild with update."""

    exchange: float
    rebuild: float


@dataclass(frozen=True)
class Problem:
    """Shapes and places of one exchange of factors; equal on all ranks but for ``block``.

    Attributes:
        shape: (K, D).
        dtype: Of factors and receiver.
        counts: S of each rank, int64.
        ranks: P.
        ranks_per_node: R, of the fullest node.
        nodes: Number of nodes.
        passes: Reads and writes of a K×D array by the receiver.
        sharing: Ranks per core where ranks outnumber cores.
        shared: Whether the receiver has one copy per node, rather than one per rank.
        block: The shared memory that it lies in then.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    counts: np.ndarray = field(repr=False)
    ranks: int
    ranks_per_node: int
    nodes: int
    passes: int
    sharing: float = 1.0
    shared: bool = False
    block: Block | None = field(default=None, repr=False)

    @cached_property
    def depth(self) -> int:
        """Samples of all ranks together."""
        return int(self.counts.sum())

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each rank's samples begin in the order of ranks."""
        return np.concatenate(([0], np.cumsum(self.counts)[:-1]))

    @cached_property
    def uniform(self) -> bool:
        """Whether all ranks have the same S."""
        return bool((self.counts == self.counts[0]).all())

    @property
    def dense_bytes(self) -> int:
        """Bytes of a K×D array."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def packed_bytes(self, samples: int) -> int:
        """Return the bytes of reading the factors of ``samples`` and packing them for a product."""
        return 2 * samples * self.sample_bytes

    def flops(self, samples: int) -> float:
        """Return the flop of a product of K×``samples`` and ``samples``×D, in float64 counted twice."""
        return 2 * samples * self.shape[0] * self.shape[1] * self.dtype.itemsize / 4

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's factors."""
        return sum(self.shape) * self.dtype.itemsize

    @property
    def panel_height(self) -> int:
        """Rows of a panel of the receiver's grid."""
        return kernels.panel_height(self.shape, self.dtype.itemsize, self.depth)

    @cached_property
    def share(self) -> float:
        """Part of the receiver's rows that the busiest rank works: all, or its panels of a node's copy."""
        rows = self.shape[0]
        if not self.shared or rows == 0:
            return 1.0
        ranges = [
            kernels.partition(rows, self.panel_height, self.ranks_per_node, r) for r in range(self.ranks_per_node)
        ]
        return max(stop - start for start, stop in ranges) / rows


def rows(problem: Problem, team: Team) -> tuple[int, int]:
    """Return the rows of the receiver that this rank works: all, or its share of the node's copy."""
    if not problem.shared:
        return 0, problem.shape[0]
    return kernels.partition(problem.shape[0], problem.panel_height, team.node.size, team.node.rank)


def update(problem: Problem, team: Team, receiver: Receiver, u: np.ndarray, v: np.ndarray) -> None:
    """Let the receiver take uᵀv in this rank's rows."""
    # The bits of a BLAS product depend on its threads, and ranks may have different numbers of them.
    with team.blas_limit(1) if problem.panel_height > 1 else nullcontext():
        receiver.update(u, v, *rows(problem, team))


def settle(problem: Problem, team: Team) -> None:
    """Wait until the node's copy of the receiver is whole; collective over the node if it is shared."""
    if problem.block is not None:
        team.fence(problem.block)
