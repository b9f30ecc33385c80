"""Alternating least squares by the ranks of a fit: each solves for its users, then for its items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sfb.kernels.stages import compiled
from sfb.models.ranks import Ranks
from sfb.models.ratings.ratings import Ratings, expanded, from_entries
from sfb.schedule import cut

__all__ = ["Alternating", "Problem", "solve"]


@dataclass(frozen=True)
class Problem:
    """What is minimised.

    Attributes:
        strength: λ, > 0.
        weighted: Whether λ is multiplied by the number of ratings of a user or item.
        biased: Whether users and items have biases, in the last column of their factors.
        confidence: 0 for ratings; else what a unit of feedback adds to the weight 1.
        steps: Steps of conjugate gradients for each user or item; 0 for Cholesky's decomposition.
        mean: What all predictions have in common.
    """

    strength: float
    weighted: bool
    biased: bool
    confidence: float
    steps: int
    mean: float

    def penalty(self, factors: np.ndarray, counts: np.ndarray) -> float:
        """Return λ·Σ‖x‖² of the factors of users or items with these numbers of ratings."""
        squares = np.einsum("ij,ij->i", factors, factors, dtype=np.float64)
        return self.strength * float((squares * counts if self.weighted else squares[counts > 0]).sum())


def solve(problem: Problem, ratings: Ratings, others: np.ndarray, gram: np.ndarray, found: np.ndarray) -> None:
    """Set factors of rows to the least-squares fit of their ratings, given the factors of columns.

    Args:
        problem: What is minimised.
        ratings: N×M ratings.
        others: Factors of the M columns.
        gram: othersᵀ·others for implicit feedback; ignored for ratings.
        found: Factors of the N rows; change.

    Raises:
        ValueError: The equations of a row cannot be solved.
    """
    kernels, dtype = compiled("factorization"), others.dtype
    features, shifts = others, np.full(len(others), problem.mean, dtype)
    if problem.biased:
        features = np.ascontiguousarray(np.hstack([others[:, :-1], np.ones((len(others), 1), dtype)]))
        shifts += others[:, -1]
    base = gram if problem.confidence else np.zeros((features.shape[1],) * 2, dtype)
    arguments: tuple[Any, ...] = (
        ratings.starts,
        ratings.columns,
        ratings.values,
        features,
        shifts,
        base,
        dtype.type(problem.confidence),
        dtype.type(problem.strength),
        problem.weighted,
    )
    if problem.steps:
        kernels.conjugate_gradient(*arguments, problem.steps, found)
    elif (row := kernels.least_squares(*arguments, found)) >= 0:
        raise ValueError(f"the equations of row {row} cannot be solved: raise regularization, or pass float64")


class Alternating:
    """Alternating least squares.

    Users stay with their rank. Each rank also has the ratings of some items by all users, which the ranks exchange
    once. In each half of an epoch a rank solves for its rows and sends them to all others.

    Args:
        ranks: The ranks.
        ratings: The ratings of this rank's users.
        problem: What is minimised.
        items: Factors of all items at first; equal on all ranks.

    Attributes:
        users: Factors of this rank's users.
        items: Factors of all items; the same bits on all ranks.
    """

    def __init__(self, ranks: Ranks, ratings: Ratings, problem: Problem, items: np.ndarray) -> None:
        self._ranks, self._problem, self._ratings = ranks, problem, ratings
        self._own_counts = np.diff(ratings.starts)
        self._counts = ranks.sum(np.bincount(ratings.columns, minlength=ratings.width).astype(np.int64))
        size = items.shape[1]
        # A row's decomposition takes about as long as its K/3 next entries.
        self._bounds = cut(self._counts + size / 3 * (self._counts > 0), ranks.size)
        self._people = np.array(ranks.gather(len(self._own_counts)))
        self.users = np.zeros((len(self._own_counts), size), items.dtype)
        self.items = items
        self._by_item = self._exchange(ratings)

    def epoch(self) -> None:
        """Solve for all users, then for all items; collective.

        Raises:
            ValueError: Equations cannot be solved; on every rank.
        """
        ranks, problem = self._ranks, self._problem
        own = slice(self._bounds[ranks.rank], self._bounds[ranks.rank + 1])
        gram = self._gram(self.items[own])
        with ranks.together("fit"):
            solve(problem, self._ratings, self.items, gram, self.users)
        people = self._gathered(self.users, self._people)
        gram = self._gram(self.users)
        mine = self.items[own].copy()
        with ranks.together("fit"):
            solve(problem, self._by_item, people, gram, mine)
        self.items = self._gathered(mine, np.diff(self._bounds))

    def objective(self) -> float:
        """Return what is minimised; collective."""
        problem, kernels = self._problem, compiled("factorization")
        own = slice(self._bounds[self._ranks.rank], self._bounds[self._ranks.rank + 1])
        rows = expanded(self.users, biased=problem.biased, rows=True)
        columns = expanded(self.items, biased=problem.biased, rows=False)
        ratings = self._ratings
        errors, squares = kernels.residuals(
            ratings.starts, ratings.columns, ratings.values, rows, columns, problem.mean, problem.confidence
        )
        if problem.confidence:  # Σ (x·f)² over all pairs of user and item, less those with feedback
            gram = self._gram(self.items[own])
            errors += float(np.sum(gram * (self.users.T @ self.users), dtype=np.float64)) - squares
        penalty = problem.penalty(self.users, self._own_counts)
        penalty += problem.penalty(self.items[own], self._counts[own])
        return float(self._ranks.sum(np.array([errors + penalty]))[0])

    def _gram(self, own: np.ndarray) -> np.ndarray:
        """Return the sum over ranks of ownᵀ·own, where implicit feedback needs it; collective."""
        if not self._problem.confidence:
            return np.empty((0, 0), own.dtype)
        return self._ranks.sum(np.ascontiguousarray(own.T @ own))

    def _gathered(self, own: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the rows of all ranks; collective."""
        if self._ranks.comm is None:
            return own
        whole = np.empty((int(lengths.sum()), own.shape[1]), own.dtype)
        self._ranks.comm.Allgatherv(np.ascontiguousarray(own), [whole, (lengths * own.shape[1]).tolist()])
        return whole

    def _exchange(self, ratings: Ratings) -> Ratings:
        """Return the ratings of this rank's items by the users of all ranks; collective."""
        rank, size = self._ranks.rank, self._ranks.size
        users = ratings.rows.astype(np.int64) + self._people[:rank].sum()
        items, values = ratings.columns.astype(np.int64), ratings.values
        if self._ranks.comm is not None:
            owners = np.searchsorted(self._bounds, items, side="right") - 1
            order = np.argsort(owners, kind="stable")
            sent = np.bincount(owners, minlength=size)
            coming = np.empty_like(sent)
            self._ranks.comm.Alltoall(sent, coming)
            received = []
            for part in (users, items, values):
                array = np.empty(int(coming.sum()), part.dtype)
                self._ranks.comm.Alltoallv([part[order], sent.tolist()], [array, coming.tolist()])
                received.append(array)
            users, items, values = received
        first, last = int(self._bounds[rank]), int(self._bounds[rank + 1])
        return from_entries(items - first, users, values, (last - first, int(self._people.sum())))
