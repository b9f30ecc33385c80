"""When the epochs of a matrix factorization end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sfb.kernels.stages import compiled
from sfb.models.ranks import Ranks
from sfb.models.ratings.alternating import Problem
from sfb.models.ratings.ratings import Ratings, expanded

__all__ = ["Progress"]


class Progress:
    """What the epochs of a fit have reached, and whether they end.

    Args:
        ranks: The ranks.
        held_out: Ratings of this rank that are not fitted; None where no rank holds out any.
        problem: What is minimised.
        tol: The relative decrease of the objective, or of the error of ratings held out, that counts.
        patience: Epochs without it after which to end, with ratings held out or if not ``steady``.
        steady: Whether the objective of fitted ratings changes steadily, so that an epoch without it is the last.

    Attributes:
        epochs: Epochs made.
        objective: The last objective, if it was computed.
        scores: RMSE of the ratings held out after each epoch.
        best: Factors of users and items with the lowest error of these; None without ratings held out.
        ended: Whether nothing is left to gain.
    """

    def __init__(
        self,
        ranks: Ranks,
        held_out: Ratings | None,
        problem: Problem,
        tol: float,
        patience: int,
        *,
        steady: bool = True,
    ) -> None:
        self.epochs, self.ended = 0, False
        self.objective: float | None = None
        self.scores: list[float] = []
        self.best: tuple[np.ndarray, np.ndarray] | None = None
        self._tol, self._patience, self._steady = tol, patience, steady
        self._ranks, self._held_out, self._problem = ranks, held_out, problem
        self._lowest, self._since = np.inf, 0

    def ends(self, objective: float | None, users: np.ndarray, items: Callable[[], np.ndarray]) -> bool:
        """Count an epoch, and return whether it was the last; collective.

        Args:
            objective: The objective, if it was computed.
            users: Factors of this rank's users.
            items: Function that returns the factors of all items.
        """
        self.epochs += 1
        if self._held_out is not None:
            found = items()
            error = self._error(self._held_out, users, found)
            self.scores.append(error)
            if error < self._lowest:
                self.best = users.copy(), found.copy()
            self.ended = self._stays(error)
        elif objective is not None:
            before, self.objective = self.objective, objective
            if self._steady:
                self.ended = before is not None and abs(before - objective) <= self._tol * before
            else:
                self.ended = self._stays(objective)
        return self.ended

    def _stays(self, value: float) -> bool:
        """Return whether the lowest value has not decreased by enough for too many epochs."""
        self._since += 1
        if value < self._lowest * (1 - self._tol):
            self._since = 0
        self._lowest = min(value, self._lowest)
        return self._since >= self._patience

    def _error(self, ratings: Ratings, users: np.ndarray, items: np.ndarray) -> float:
        """Return the RMSE of ratings of all ranks; collective."""
        biased = self._problem.biased
        errors, _ = compiled("factorization").residuals(
            ratings.starts,
            ratings.columns,
            ratings.values,
            expanded(users, biased=biased, rows=True),
            expanded(items, biased=biased, rows=False),
            self._problem.mean,
            0.0,
        )
        total, count = self._ranks.sum(np.array([errors, float(len(ratings.values))]))
        return float(np.sqrt(total / count))
