"""What chains learn in their warm-up: step sizes and covariances."""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np

__all__ = ["DualAveraging", "Moments", "window_ends"]

_FIRST = 25  # iterations of the first window


class DualAveraging:
    """A step size that comes to give a wanted acceptance rate (Hoffman and Gelman, JMLR 15, 2014, section 3.2).

    Args:
        step: A step size to start from.
        target: The wanted mean of the acceptance probability.

    Attributes:
        step: The step size to take next.
    """

    def __init__(self, step: float, target: float) -> None:
        self.step = step
        self._target = target
        self._centre = log(10 * step)
        self._error, self._mean, self._count = 0.0, 0.0, 0

    def update(self, accepted: float) -> None:
        """Take the acceptance probability of a proposal."""
        self._count += 1
        rate = 1 / (self._count + 10)
        self._error += rate * (self._target - accepted - self._error)
        now = self._centre - sqrt(self._count) / 0.05 * self._error
        weight = self._count**-0.75
        self._mean += weight * (now - self._mean)
        self.step = exp(now)

    @property
    def average(self) -> float:
        """The step size for after the warm-up."""
        return exp(self._mean) if self._count else self.step


class Moments:
    """The covariance of points that come one after another (Welford, Technometrics 4(3), 1962).

    Args:
        size: The number of elements of a point.
        dense: Whether to keep the whole covariance, rather than its diagonal.
    """

    def __init__(self, size: int, *, dense: bool) -> None:
        self._mean = np.zeros(size)
        self._sum = np.zeros((size, size) if dense else size)
        self._count = 0
        self._dense = dense

    def add(self, x: np.ndarray) -> None:
        """Take a point."""
        self._count += 1
        before = x - self._mean
        self._mean += before / self._count
        after = x - self._mean
        self._sum += np.outer(before, after) if self._dense else before * after

    def covariance(self) -> np.ndarray:
        """Return the covariance, or its diagonal, drawn towards simpler ones while there are few points.

        Variances are drawn towards 0.001 as Stan draws them, and a whole covariance towards its diagonal: of fewer
        points than elements it is singular.
        """
        found = self._sum / max(1, self._count - 1)
        variances = np.diag(found) if self._dense else found
        weight = self._count / (self._count + 5.0)
        variances = weight * variances + 1e-3 * (1 - weight)
        if not self._dense:
            return variances
        weight = self._count / (self._count + 5.0 + len(variances))
        found = weight * (found + found.T) / 2
        np.fill_diagonal(found, variances)
        return found


def window_ends(warmup: int) -> list[int]:
    """Return after how many iterations of the warm-up the covariance is taken over.

    The first 15 % find the typical set, and the last 10 % settle the step size. Between them lie windows, each twice as
    long as the one before (Stan reference manual, "Automatic parameter tuning").

    >>> from sfb.mcmc.adaptation import window_ends
    >>> window_ends(1000)
    [175, 225, 325, 900]
    """
    first, last = int(0.15 * warmup), int(0.9 * warmup)
    if last - first < _FIRST:
        return []
    ends, size = [first], _FIRST
    while ends[-1] + 3 * size <= last:  # else the next one would be cut short
        ends.append(ends[-1] + size)
        size *= 2
    return [*ends[1:], last]
