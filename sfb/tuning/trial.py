"""Trials: the first calls of an exchange time the algorithms that may be fastest."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

__all__ = ["TIMED", "Trial"]

# Calls of an algorithm until its times may decide, the first of which does not count, and most calls of it where they
# are short.
TIMED, _MOST = 8, 64
# A trial drops an algorithm that is slower than the best by the first factor after one call that counts, and by the
# second once the times are reliable.
_HOPELESS, _BEHIND = 4.0, 1.4


class Trial:
    """Rounds of calls, one of each algorithm a round, until it is clear which is fastest.

    All ranks note the same times and so reach the same result.

    Args:
        algorithms: The contenders, the one estimated best first.
        min_seconds: Seconds of calls to time of each contender. Short calls vary; this times them more often.
        far: Whether the ranks lie on several nodes.

    Attributes:
        seconds: The seconds of each call so far, by algorithm.
    """

    def __init__(self, algorithms: Sequence[str], min_seconds: float = 0.0, *, far: bool = False) -> None:
        self._far = far
        self._round: dict[str, tuple[float, float]] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in algorithms}
        self._left = list(algorithms)
        self._min_seconds = min_seconds

    @property
    def algorithms(self) -> list[str]:
        """The contenders that are left."""
        return list(self._left)

    @property
    def next(self) -> str:
        """The algorithm of the next call. Every second round has the opposite order, so that neighbours change."""
        rounds = len(self.seconds[self._left[0]])
        order = self._left[::-1] if rounds % 2 else self._left
        return next(name for name in order if name not in self._round)

    def record(self, algorithm: str, worked: float, waited: float) -> bool:
        """Record the seconds of a call in which this rank worked, and waited for others.

        Returns:
            Whether the round is over; all ranks then take the maximum of their `times`, for `end_round`.
        """
        self._round[algorithm] = worked, waited
        return len(self._round) == len(self._left)

    def times(self) -> np.ndarray:
        """Return a row for each algorithm of the round: seconds worked, seconds waited negated, and both together."""
        recorded = (self._round[name] for name in self._left)
        return np.array([(worked, -waited, worked + waited) for worked, waited in recorded])

    def end_round(self, most: np.ndarray) -> None:
        """Note the times of the round, of which ``most`` is the maximum over all ranks.

        Within a node a call takes as long as the slowest rank works, and the shortest wait: a rank that waits longer
        waits for another that is late. Between nodes data arrive while a rank waits, so the slowest rank counts.
        """
        for name, (worked, waited, both) in zip(self.algorithms, most.tolist(), strict=True):
            self.add(name, both if self._far else worked - waited)
        self._round.clear()

    def add(self, algorithm: str, seconds: float) -> None:
        """Note the seconds of a call, and drop the contenders that are far behind."""
        self.seconds[algorithm].append(seconds)
        fewest = min(len(self.seconds[name]) for name in self._left)
        if fewest > 1:
            # Two short calls that count say little.
            reliable = fewest > 2 and all(self._long(self.seconds[name]) for name in self._left)
            factor = _BEHIND if reliable or fewest >= _MOST // 2 else _HOPELESS
            limit = factor * self.measured[self.best]
            self._left = [name for name in self._left if self.measured[name] <= limit]

    @property
    def over(self) -> bool:
        """Whether one contender is left, or the trial has timed all of them often enough."""
        return len(self._left) == 1 or all(self._enough(self.seconds[name]) for name in self._left)

    def _enough(self, taken: Sequence[float]) -> bool:
        return len(taken) >= TIMED and (len(taken) >= _MOST or self._long(taken))

    def _long(self, taken: Sequence[float]) -> bool:
        return sum(taken) >= self._min_seconds

    @property
    def measured(self) -> dict[str, float]:
        """The median seconds of a call, by algorithm.

        Of many calls only the later half counts: a network at rest is faster.
        """
        counted = {name: taken[1 if len(taken) <= TIMED else len(taken) // 2 :] for name, taken in self.seconds.items()}
        return {name: median(taken) for name, taken in counted.items() if taken}

    @property
    def best(self) -> str:
        """The fastest contender that is left."""
        return min(self._left, key=lambda name: self.measured[name])
