"""Load balancing: which rank holds which block, by what the blocks have cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from sfb.runtime.seals import are_on
from sfb.schedule.agree import agree, caught, is_alone
from sfb.schedule.blocks import PackedBlock, check_blocks

__all__ = ["Costs", "cut", "loads", "move", "partition", "rebalance"]

_TAG = 2


class Costs:
    """The measured seconds of each block, smoothed.

    >>> from sfb.schedule import Costs
    >>> costs = Costs(2, memory=0.5)
    >>> for seconds in (4.0, 2.0):
    ...     costs.add(0, seconds)
    >>> costs.values.tolist()
    [3.0, 0.0]

    Args:
        blocks: The number of blocks.
        memory: The weight of earlier measurements of a block against the next, from 0 up to 1.

    Attributes:
        values: Seconds of each block; 0 for a block that nobody has measured.

    Raises:
        ValueError: There is no block, or ``memory`` is out of range.
    """

    def __init__(self, blocks: int, *, memory: float = 0.5) -> None:
        if blocks < 1 or not 0 <= memory < 1:
            raise ValueError(f"expected blocks ≥ 1 and 0 ≤ memory < 1, got {blocks} and {memory}")
        self.values = np.zeros(blocks)
        self._memory = memory

    def add(self, block: int, seconds: float) -> None:
        """Take a measurement."""
        old = self.values[block]
        self.values[block] = seconds if old == 0 else self._memory * old + (1 - self._memory) * seconds

    @contextmanager
    def measure(self, block: int) -> Iterator[None]:
        """Measure the block of a ``with`` statement."""
        start = perf_counter()
        yield
        self.add(block, perf_counter() - start)

    def share(self, comm: Any) -> np.ndarray:
        """Return the costs of all blocks on every rank, the largest that any rank has; collective."""
        if not is_alone(comm):
            from mpi4py import MPI

            comm.Allreduce(MPI.IN_PLACE, self.values, MPI.MAX)
        return self.values


def loads(owners: Sequence[int] | np.ndarray, costs: Sequence[float] | np.ndarray, parts: int) -> np.ndarray:
    """Return the summed cost of the items of each part.

    Args:
        owners: The part of each item.
        costs: The cost of each item.
        parts: The number of parts.

    >>> from sfb.schedule import loads
    >>> loads([0, 1, 0], [1.0, 2.0, 3.0], 2)
    array([4., 2.])
    """
    return np.bincount(np.asarray(owners, np.intp), np.asarray(costs, float), minlength=parts)


def partition(costs: Sequence[float] | np.ndarray, parts: int) -> np.ndarray:
    """Assign items to parts of about the same cost, the dearest item first.

    The largest part is at most 4/3 − 1/(3·parts) times the least possible (Graham, "Bounds on Multiprocessing Timing
    Anomalies", SIAM J. Appl. Math. 17(2), 1969).

    >>> from sfb.schedule import partition
    >>> partition([5, 4, 3, 3, 3], 2).tolist()
    [0, 1, 1, 0, 1]

    Args:
        costs: The cost of each item, ≥ 0.
        parts: The number of parts.

    Returns:
        The part of each item, int64. Items that cost nothing are spread evenly.

    Raises:
        ValueError: A cost is negative or not finite, or there is no part.
    """
    values = _costs(costs, parts)
    owners = np.zeros(len(values), np.int64)
    sums, counts = np.zeros(parts), np.zeros(parts, np.int64)
    for item in np.argsort(-values, kind="stable"):
        part = np.lexsort((counts, sums))[0]
        owners[item] = part
        sums[part] += values[item]
        counts[part] += 1
    return owners


def cut(costs: Sequence[float] | np.ndarray, parts: int) -> np.ndarray:
    """Cut a row of items into consecutive parts whose dearest costs as little as possible.

    >>> from sfb.schedule import cut
    >>> cut([1, 1, 1, 3, 1, 1], 3).tolist()
    [0, 3, 4, 6]

    Args:
        costs: The cost of each item, ≥ 0.
        parts: The number of parts; parts may be empty.

    Returns:
        Where each part begins, and the end: parts + 1 numbers, int64.

    Raises:
        ValueError: As `partition` does.
    """
    values = _costs(costs, parts)
    sums = np.concatenate([[0.0], np.cumsum(values)])

    def bounds(limit: float) -> np.ndarray:
        found = [0]
        for _ in range(parts):
            reach = np.searchsorted(sums, sums[found[-1]] + limit, side="right") - 1
            found.append(max(int(reach), found[-1]))
        return np.array(found, np.int64)

    low, high = float(values.max(initial=0.0)), float(sums[-1])
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if bounds(middle)[-1] == len(values) else (middle, high)
    found = bounds(high * (1 + 1e-12))
    found[-1] = len(values)
    return found


def rebalance(
    owners: Sequence[int] | np.ndarray,
    costs: Sequence[float] | np.ndarray,
    parts: int,
    *,
    tolerance: float = 1.1,
) -> np.ndarray:
    """Move few items from the dearest parts to the cheapest.

    >>> from sfb.schedule import rebalance
    >>> rebalance([0, 0, 0, 1], [1, 1, 1, 1], 2).tolist()
    [1, 0, 0, 1]

    Args:
        owners: The part of each item.
        costs: The cost of each item, ≥ 0.
        parts: The number of parts.
        tolerance: The cost of the dearest part over the mean up to which nothing moves.

    Returns:
        The part of each item, int64; the dearest part costs no more than before.

    Raises:
        ValueError: As `partition` does, or an owner is no part.
    """
    values = _costs(costs, parts)
    found = np.array(owners, np.int64)
    if found.shape != values.shape or ((found < 0) | (found >= parts)).any():
        raise ValueError(f"owners must be {len(values)} numbers from 0 to {parts - 1}")
    sums = loads(found, values, parts)
    for _ in range(len(values)):
        dear, cheap = int(sums.argmax()), int(sums.argmin())
        excess = sums[dear] - sums[cheap]
        if sums[dear] <= tolerance * sums.mean():
            break
        own = np.flatnonzero((found == dear) & (values > 0) & (values < excess))
        if not own.size:
            break
        item = own[np.abs(values[own] - excess / 2).argmin()]  # brings both parts closest together
        found[item] = cheap
        sums[dear] -= values[item]
        sums[cheap] += values[item]
    return found


def move(
    comm: Any, blocks: Mapping[int, Sequence[np.ndarray]], owners: Sequence[int] | np.ndarray
) -> dict[int, tuple[np.ndarray, ...]]:
    """Send blocks to their new owners; collective.

    >>> import numpy as np
    >>> from sfb.schedule import move
    >>> move(None, {0: [np.arange(3)]}, [0])
    {0: (array([0, 1, 2]),)}

    Args:
        comm: The ranks; None for this process alone.
        blocks: The arrays of the blocks that this rank holds, by the block's number. Each of the numbers 0, 1, … is
            held by one rank.
        owners: The new rank of each block, equal on all ranks.

    Returns:
        The arrays of the blocks that this rank holds now, by number in ascending order. Blocks that stay are not
        copied.

    Raises:
        ValueError, TypeError: The blocks or the owners are wrong on a rank; on every rank.
        DamagedMessageError: A block has arrived damaged; on every rank.
    """
    forms, homes = check_blocks(comm, blocks, "move")
    target = np.asarray(owners)
    alone = is_alone(comm)
    size, rank = (1, 0) if alone else (comm.size, comm.rank)

    def check() -> None:
        if target.shape != (len(homes),) or target.dtype.kind not in "iu" or ((target < 0) | (target >= size)).any():
            raise ValueError(f"owners must be {len(homes)} ranks from 0 to {size - 1}, got {owners!r}")

    checked, error = caught(are_on)
    agree(comm, "move", f"owners {target.tolist()}, SFB_CHECKSUMS={bool(checked):d}", error or caught(check)[1])
    if alone:
        return {number: tuple(blocks[number]) for number in sorted(blocks)}
    from sfb.runtime.team import near

    held: dict[int, tuple[np.ndarray, ...]] = {}
    requests, coming, kept = [], [], []
    own = near(comm)
    for number, home in enumerate(homes):
        if home == target[number]:
            if home == rank:
                held[number] = tuple(blocks[number])
        elif home == rank:
            to = int(target[number])
            packed = PackedBlock(number, forms[number]).fill(blocks[number])
            kept.append(packed)
            requests += packed.send(comm, to, _TAG, checked=checked and to not in own)
        elif target[number] == rank:
            packed = PackedBlock(number, forms[number])
            coming.append((home, packed))
            requests += packed.receive(comm, home, _TAG)
    for request in requests:
        request.Wait()
    damage: Exception | None = None
    for home, packed in coming:
        _, wrong = caught(partial(packed.open, home, checked=checked and home not in own))
        damage = damage or wrong
        held[packed.number] = packed.arrays
    agree(comm, "move", error=damage)
    return dict(sorted(held.items()))


def _costs(costs: Sequence[float] | np.ndarray, parts: int) -> np.ndarray:
    values = np.asarray(costs, float)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"costs must be a row of finite numbers ≥ 0, got {costs!r}")
    if parts < 1:
        raise ValueError(f"parts must be ≥ 1, got {parts}")
    return values
