"""Random choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["LARGEST", "SAMPLES", "Dice"]

T = TypeVar("T")

# Most rows and columns of a matrix, and most samples S of a rank where others have some.
LARGEST, SAMPLES = 1600, 40


class Dice:
    """Random choices; equal seeds give equal choices, on any rank.

    Args:
        *seed: Integers ≥ 0.
    """

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def chance(self, part: float) -> bool:
        """Return True in this part of all calls."""
        return bool(self._rng.random() < part)

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Return one of several values, as often as its weight says."""
        parts = None if weights is None else np.array(weights) / sum(weights)
        return options[int(self._rng.choice(len(options), p=parts))]

    def whole(self, least: int, most: int) -> int:
        """Return an integer from ``least`` to ``most``."""
        return int(self._rng.integers(least, most + 1))

    def real(self, least: float, most: float) -> float:
        """Return a number from ``least`` to ``most``."""
        return float(self._rng.uniform(least, most))

    def order(self, count: int) -> list[int]:
        """Return the numbers below ``count`` in some order."""
        return [int(n) for n in self._rng.permutation(count)]

    def size(self) -> int:
        """Return a number of elements: 0 and 1 are frequent, odd numbers as likely as even ones, large ones rare."""
        most = self.pick((0, 1, 9, 130, 5000, 300_000, 2_000_000), (2, 2, 4, 6, 6, 2, 0.2))
        return self.whole(min(most, 1), most)

    def shape(self) -> tuple[int, int]:
        """Return K and D of a matrix; either is 0 now and then."""
        most = self.pick((0, 1, 9, 60, 400, LARGEST), (0.3, 1, 4, 8, 6, 0.3))
        return self.whole(1 if most else 0, max(most, 1)), self.whole(1, max(most, 20))

    def counts(self, ranks: int, most: int = SAMPLES) -> list[int]:
        """Return the samples S of each rank: all equal, none, on one rank only, or of any number."""
        kind = self.pick(("equal", "any", "none", "one"), (4, 4, 1, 1))
        if kind == "any":
            return [self.whole(0, most) for _ in range(ranks)]
        samples = [0 if kind == "none" else self.pick((1, self.whole(1, most)))] * ranks
        if kind == "one":
            samples = [0] * ranks
            samples[self.whole(0, ranks - 1)] = self.whole(1, 4 * most)
        return samples
