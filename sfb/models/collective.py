"""What estimators do together with other ranks when they descend: batches, sums of factors, and steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

import sfb
from sfb.models.ranks import Ranks

__all__ = ["batches", "place", "seed_of", "take", "threads_of", "total"]


def batches(order: np.ndarray, sizes: Sequence[int], batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield this rank's part of each batch of an epoch, which may be empty, and the examples of all ranks in it.

    Every batch takes from each rank in proportion to the examples that the rank has.

    Args:
        order: Numbers of this rank's examples, in the order of the epoch.
        sizes: The number of examples of each rank.
        batch: Examples of a batch, of all ranks together.
    """
    steps = -(-sum(sizes) // batch)
    for step in range(steps):
        low, high = (len(order) * i // steps for i in (step, step + 1))
        count = sum(size * (step + 1) // steps - size * step // steps for size in sizes)
        if count:
            yield order[low:high], count


def seed_of(ranks: Ranks, random_state: Any, call: str = "fit") -> int:
    """Return the seed that rank 0 draws from its ``random_state``; collective.

    Raises:
        ValueError: A rank's ``random_state`` is no seed; on every rank.
    """
    with ranks.together(call):
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return ranks.first(seed)


def place(ranks: Ranks, array: np.ndarray) -> np.ndarray:
    """Return an array of the same values in memory that the ranks of a node share; collective."""
    if ranks.comm is None:
        return array
    placed = ranks.comm.shared(array.shape, array.dtype)
    if ranks.comm.node.rank == 0:
        placed[:] = array
    ranks.comm.Barrier()
    return placed


def threads_of(ranks: Ranks) -> int:
    """Return the threads of this rank: its share of the cores, or what NUMBA_NUM_THREADS says; collective."""
    if ranks.comm is None:
        import numba

        config: Any = numba.config
        return int(config.NUMBA_NUM_THREADS)
    from sfb.runtime import threads

    return threads.threads_of(ranks.comm.node, threads.cores(ranks.comm.node))


def total(ranks: Ranks, factors: sfb.Factors) -> np.ndarray:
    """Return the sum of uᵀv over ranks, K×D, the same bits on all of them; collective."""
    found = np.empty(factors.shape, factors.dtype)
    if ranks.comm is None:
        return factors.dense(out=found)
    ranks.comm.Allreduce(factors, found)
    return found


def take(ranks: Ranks, factors: sfb.Factors, rule: sfb.optim.Optimizer) -> None:
    """Let an update rule take the sum of uᵀv over ranks; collective."""
    if ranks.comm is not None:
        ranks.comm.Allreduce(factors, rule)
        return
    rule.check()
    rule.prepare(np.zeros)
    rule.update(factors.u, factors.v, 0, rule.shape[0])
    rule.end()
