"""Schedules: which variables are updated together.

Every rank draws the same variables from the same seed, so no rank has to tell the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["Priority", "Random", "RoundRobin", "Schedule", "StaticBlocks"]


class Schedule(ABC):
    """A choice of variables, round after round, the same on all ranks.

    Attributes:
        variables: The number of variables n.

    >>> import numpy as np
    >>> from sfb.schedule import Schedule
    >>> class Even(Schedule):
    ...     variables = 6
    ...
    ...     def select(self):
    ...         return np.arange(0, 6, 2)
    >>> Even().select()
    array([0, 2, 4])
    """

    variables: int

    @abstractmethod
    def select(self) -> np.ndarray:
        """Return the variables of the next round, distinct numbers below n, int64."""

    def feedback(self, selected: np.ndarray, changes: np.ndarray) -> None:  # noqa: B027 most need none
        """Take by how much each selected variable has changed; the same on all ranks."""


class RoundRobin(Schedule):
    """All variables in turn.

    >>> from sfb.schedule import RoundRobin
    >>> schedule = RoundRobin(5, 2)
    >>> [schedule.select().tolist() for _ in range(3)]
    [[0, 1], [2, 3], [4, 0]]

    Args:
        variables: The number of variables.
        width: The number of variables of a round; all of them if there are fewer.
    """

    def __init__(self, variables: int, width: int) -> None:
        self.variables, self._width = _sizes(variables, width)
        self._next = 0

    def select(self) -> np.ndarray:
        """Return the next variables."""
        chosen = (self._next + np.arange(self._width)) % self.variables
        self._next = int(chosen[-1] + 1) % self.variables
        return chosen


class Random(Schedule):
    """Variables drawn at random, each with the same probability, whether or not they depend on each other.

    Args:
        variables: The number of variables.
        width: The number of variables of a round; all of them if there are fewer.
        seed: The seed, the same on all ranks.

    >>> from sfb.schedule import Random
    >>> schedule = Random(100, 3, seed=0)
    >>> len(set(schedule.select().tolist()))
    3
    """

    def __init__(self, variables: int, width: int, *, seed: int = 0) -> None:
        self.variables, self._width = _sizes(variables, width)
        self._rng = np.random.default_rng(seed)

    def select(self) -> np.ndarray:
        """Return variables, drawn without replacement."""
        return self._rng.choice(self.variables, self._width, replace=False)


class StaticBlocks(Schedule):
    """Blocks of variables in turn, as given.

    >>> from sfb.schedule import StaticBlocks
    >>> schedule = StaticBlocks([[0, 2], [1]])
    >>> [schedule.select().tolist() for _ in range(3)]
    [[0, 2], [1], [0, 2]]

    Args:
        blocks: The variables of each block. Together the blocks hold every number from 0 up to their count once.

    Raises:
        ValueError: The blocks do not.
    """

    def __init__(self, blocks: Sequence[Sequence[int] | np.ndarray]) -> None:
        self._blocks = [np.asarray(block, np.int64) for block in blocks if len(block)]
        found = np.sort(np.concatenate([np.empty(0, np.int64), *self._blocks]))
        if not found.size or (found != np.arange(found.size)).any():
            raise ValueError("blocks must hold each of the variables 0, 1, … once")
        self.variables = found.size
        self._next = 0

    def select(self) -> np.ndarray:
        """Return the next block."""
        block = self._blocks[self._next]
        self._next = (self._next + 1) % len(self._blocks)
        return block


class Priority(Schedule):
    """Variables that have changed most, drawn so that none depends much on another (STRADS, EuroSys 2016, section 3).

    Candidates are drawn with probability ∝ (last change)² + ε. In the order in which they are drawn, a candidate is
    kept if its absolute correlation with every one kept so far is below the threshold. Updating such variables at the
    same time gives nearly what updating one after another gives (Bradley, Kyrola, Bickson and Guestrin, "Parallel
    Coordinate Descent for L1-Regularized Loss Minimization", ICML 2011).

    >>> import numpy as np
    >>> from sfb.schedule import Priority
    >>> correlation = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> schedule = Priority(3, 3, lambda chosen: correlation[np.ix_(chosen, chosen)])
    >>> sorted(len(schedule.select()) for _ in range(5))  # 0 and 1 are never chosen together
    [2, 2, 2, 2, 2]

    Args:
        variables: The number of variables.
        width: Most variables of a round.
        correlation: Function that returns the correlations of some variables with each other, a c×c array for c
            variables, the same on all ranks; every rank calls it in the same rounds.
        threshold: The absolute correlation below which two variables may be updated together.
        epsilon: The ε of the probability, relative to the mean square of the changes: the part of rounds that goes to
            variables which have not changed.
        candidates: The number of candidates for each variable of a round.
        seed: The seed, the same on all ranks.

    Attributes:
        changes: The last change of each variable; infinite for one that no round has chosen yet, and such variables
            come first.
        refused: Candidates that were refused so far, since they depended on one kept.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        variables: int,
        width: int,
        correlation: Callable[[np.ndarray], np.ndarray],
        *,
        threshold: float = 0.1,
        epsilon: float = 0.1,
        candidates: int = 2,
        seed: int = 0,
    ) -> None:
        self.variables, self._width = _sizes(variables, width)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be > 0 and ≤ 1, got {threshold}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be > 0, got {epsilon}")
        self._count = _sizes(variables, self._width * candidates)[1]
        self._correlation, self._threshold, self._epsilon = correlation, threshold, epsilon
        self._rng = np.random.default_rng(seed)
        self.changes = np.full(self.variables, np.inf)
        self.refused = 0

    def select(self) -> np.ndarray:
        """Return independent variables, the most urgent first."""
        drawn = self._draw()
        # Correlations cost the square of their number: those of further candidates are wanted only if some are refused.
        kept = self._independent(drawn[:0], drawn[: self._width])
        return self._independent(kept, drawn[self._width :]) if len(kept) < self._width < len(drawn) else kept

    def _independent(self, kept: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Return the variables kept so far and the candidates that depend on none kept, in their order."""
        both = np.concatenate((kept, candidates))
        related = np.abs(self._correlation(both))
        if related.shape != (len(both), len(both)):
            raise ValueError(f"correlation of {len(both)} variables returned shape {related.shape}")
        # A correlation that is NaN, of a constant variable, is none below the threshold.
        free = related < self._threshold
        chosen = list(range(len(kept)))
        allowed = free[chosen].all(axis=0)  # those that depend on none kept
        for i in range(len(kept), len(both)):
            if len(chosen) == self._width:
                break
            if allowed[i]:
                chosen.append(i)
                allowed &= free[i]
            else:
                self.refused += 1
        return both[chosen]

    def feedback(self, selected: np.ndarray, changes: np.ndarray) -> None:
        """Take by how much each selected variable has changed."""
        self.changes[selected] = np.abs(changes)

    def _draw(self) -> np.ndarray:
        """Return candidates in the order in which they are drawn."""
        new = np.flatnonzero(np.isinf(self.changes))
        if len(new) >= self._count:
            return self._rng.choice(new, self._count, replace=False)
        # Of independent exponential times with rates w the first ones are a draw with probability ∝ w, without
        # replacement (Efraimidis and Spirakis, "Weighted Random Sampling with a Reservoir", 2006).
        scale = self.changes.max(where=np.isfinite(self.changes), initial=0.0) or 1.0
        weights = np.square(self.changes / scale)  # whose squares do not underflow
        finite = np.isfinite(weights)
        weights[finite] += self._epsilon * (weights[finite].mean() if finite.any() and weights[finite].any() else 1.0)
        times = self._rng.standard_exponential(self.variables) / weights
        times[new] = self._rng.random(len(new)) - 1  # before all others
        first = np.argpartition(times, self._count - 1)[: self._count]
        return first[np.argsort(times[first])]


def _sizes(variables: int, width: int) -> tuple[int, int]:
    if variables < 1 or width < 1:
        raise ValueError(f"expected at least 1 variable and a width ≥ 1, got {variables} and {width}")
    return int(variables), min(int(width), int(variables))
