"""Stochastic gradient descent on factors by the ranks of a fit: users stay, blocks of items rotate."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from sfb.kernels.stages import compiled
from sfb.models.ranks import Ranks
from sfb.models.ratings.alternating import Problem
from sfb.models.ratings.ratings import Ratings
from sfb.schedule import Block, BlockProgram, Rotation, Trace, partition

__all__ = ["Descent"]

_CHUNK = 1 << 16  # ratings between two looks at messages
_FASTER, _SLOWER, _BACK = 1.05, 0.5, 0.25  # factors of the step length


class _Part:
    """The ratings of this rank's users for the items of a block."""

    def __init__(self, ratings: Ratings, chosen: np.ndarray, place: np.ndarray) -> None:
        self.rows = ratings.rows[chosen]
        self.columns = place[ratings.columns[chosen]].astype(np.uint32)
        self.values = ratings.values[chosen]
        self.order = np.arange(len(self.rows), dtype=np.uint32)


class Descent(BlockProgram):
    """Distributed stochastic gradient descent (DSGD); a context manager. Making and freeing it is collective.

    Gemulla, Nijkamp, Haas and Sismanis, "Large-Scale Matrix Factorization with Distributed Stochastic Gradient
    Descent", KDD 2011: blocks with neither users nor items in common do not affect each other, so each rank works on
    one, and blocks of items move on. The bold driver of section 5.1 sets the length of steps: longer after an epoch
    that has lowered the loss, shorter after one that has not.

    Args:
        ranks: The ranks.
        ratings: The ratings of this rank's users.
        problem: What is minimised.
        users: Factors of this rank's users; change.
        items: Factors of all items at first; equal on all ranks.
        rate: Length of the first steps.
        seed: Seed of the order of ratings; equal on all ranks.
        blocks: Blocks of items for each rank.
        passes: Most further passes over a block that a rank makes while others are not done.
        check: Whether to check that each block is on one rank at a time.
        trace: A record of what this rank does.

    Attributes:
        users: Factors of this rank's users.
        rate: Length of the next steps.
        loss: The squared errors that the last epoch met, over all ranks.
    """

    summand: np.ndarray

    def __init__(
        self,
        ranks: Ranks,
        ratings: Ratings,
        problem: Problem,
        users: np.ndarray,
        items: np.ndarray,
        *,
        rate: float,
        seed: int,
        blocks: int = 1,
        passes: int = 0,
        check: bool = False,
        trace: Trace | None = None,
    ) -> None:
        self.users, self.rate, self.loss = users, rate, np.inf
        self._ranks, self._problem, self._seed, self._draws = ranks, problem, seed, 0
        self._own_counts = np.diff(ratings.starts)
        self._counts = ranks.sum(np.bincount(ratings.columns, minlength=ratings.width).astype(np.int64))
        self._strengths = self._strengths_of(self._own_counts, users.dtype)
        number = ranks.size * blocks
        owners = partition(self._counts, number)
        self._items = [np.flatnonzero(owners == block) for block in range(number)]
        place = np.empty(ratings.width, np.int64)
        for block in self._items:
            place[block] = np.arange(len(block))
        block_of = owners[ratings.columns]
        self._parts = [_Part(ratings, block_of == block, place) for block in range(number)]
        item_strengths = self._strengths_of(self._counts, users.dtype)
        self._item_strengths = [item_strengths[block] for block in self._items]
        self.summand = np.zeros(1)
        home = {block: (items[self._items[block]],) for block in range(number) if block // blocks == ranks.rank}
        self._rotation = Rotation(ranks.comm, home, passes=passes, check=check, trace=trace)

    def _strengths_of(self, counts: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Return λ for each gradient step of users or items: a rating's share of their penalty."""
        strength = self._problem.strength
        return np.asarray(
            strength / (1 if self._problem.weighted else np.maximum(counts, 1)) * np.ones(len(counts)), dtype
        )

    def epoch(self) -> bool:
        """Take a step for each rating, and return whether the loss fell; collective.

        An epoch that diverges is undone.
        """
        before, blocks = self.loss, self._rotation.blocks
        kept = self.users.copy(), {number: array.copy() for number, (array,) in blocks.items()}
        self._rotation.sweep(self)
        first = np.isinf(before)
        finite = self._ranks.sum(np.array([0.0 if self._finite() else 1.0]))[0] == 0
        if not finite or (not first and self.loss > 4 * before):
            self.loss, self.rate = before, self.rate * _BACK
            self.users[:] = kept[0]
            for number, (array,) in self._rotation.blocks.items():
                array[:] = kept[1][number]
            return False
        self.rate *= _FASTER if self.loss < before else _SLOWER
        return bool(self.loss < before)

    def _finite(self) -> bool:
        """Return whether the loss, and what this rank holds, is finite."""
        arrays = [self.users, *(array for (array,) in self._rotation.blocks.values())]
        return bool(np.isfinite(self.loss) and all(np.isfinite(array).all() for array in arrays))

    def push(self, block: Block) -> None:
        """Take a step for each rating of this rank's users for the items of a block."""
        self.summand[0] += self._descend(block, lambda: False)

    def improve(self, block: Block, done: Callable[[], bool]) -> None:
        """Take steps again until all ranks are done."""
        self._descend(block, done)

    def pull(self, total: np.ndarray) -> None:
        """Take the loss of all ranks."""
        self.loss = float(total[0])

    def _descend(self, block: Block, done: Callable[[], bool]) -> float:
        part, problem = self._parts[block.number], self._problem
        stream = np.random.SeedSequence([self._seed, self._ranks.rank, self._draws]).generate_state(1, np.uint64)
        self._draws += 1
        kind, total = self.users.dtype.type, 0.0
        for first in range(0, len(part.order), _CHUNK):
            if done():
                break
            total += compiled("factorization").descend(
                part.rows,
                part.columns,
                part.values,
                part.order,
                self.users,
                block.arrays[0],
                kind(problem.mean),
                kind(self.rate),
                self._strengths,
                self._item_strengths[block.number],
                problem.biased,
                first,
                min(first + _CHUNK, len(part.order)),
                stream,
            )
            block.progress()
        return total

    def items(self) -> np.ndarray:
        """Return the factors of all items, the same bits on all ranks; collective."""
        own = [(number, array.copy()) for number, (array,) in self._rotation.blocks.items()]
        found = np.zeros((len(self._counts), self.users.shape[1]), self.users.dtype)
        for part in self._ranks.gather(own):
            for number, array in part:
                found[self._items[number]] = array
        return found

    def objective(self, items: np.ndarray) -> float:
        """Return what is minimised, with the errors that the last epoch met; collective.

        Args:
            items: Factors of all items.
        """
        own = np.array([self._problem.penalty(self.users, self._own_counts)])
        return self.loss + float(self._ranks.sum(own)[0]) + self._problem.penalty(items, self._counts)

    @property
    def extra(self) -> int:
        """Further passes over blocks that this rank has made."""
        return self._rotation.extra

    def free(self) -> None:
        """Free the rotation's communicator; collective."""
        self._rotation.free()

    def __enter__(self) -> Descent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # as Rotation does
            self.free()
