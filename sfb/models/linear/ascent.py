"""Linear models by stochastic dual coordinate ascent: the ranks exchange the changes of dual variables as factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack
from scipy.special import logsumexp, xlogy
from sklearn.utils import check_random_state

import sfb
from sfb.kernels.stages import compiled
from sfb.models.ranks import Ranks

__all__ = ["Ascent", "Entropy", "Hinge"]

# Samples of a rank between two exchanges.
_SAMPLES = 256


class Ascent(ABC):
    """The dual of ½‖w‖² + Σ costs·loss over the samples of all ranks, and steps that raise it.

    Shalev-Shwartz and Zhang, "Stochastic Dual Coordinate Ascent Methods for Regularized Loss Minimization", JMLR 14,
    2013, section 2. Each rank raises the dual by its samples. The ranks then add up the changes of w, which are Σ over
    samples of x times the change of its dual variables: factors (Xie et al., "Lighter-Communication Distributed Machine
    Learning via Sufficient Factor Broadcasting", UAI 2016, section 3). For the sum to be safe a rank counts its own
    changes P times (Ma et al., "Adding vs. Averaging in Distributed Primal-Dual Optimization", ICML 2015, section 3).

    Args:
        ranks: The ranks.
        x: N×D features of this rank, dense or CSR.
        y: N indices of classes.
        costs: N weights of the loss.
        classes: The number of classes K.
        constant: Value of a further feature, whose coefficients are intercepts; 0 for none.
        seed: Seed of the order of samples, as scikit-learn takes it.
        dual: N×K dual variables to start from, where they fit; None for those of w = 0.

    Attributes:
        w: K×D coefficients, or K×(D + 1) with those of the constant feature last; the same bits on all ranks.
        dual: N×K dual variables of this rank.
        gap: The gap between the objective and its dual after the last pass, relative to the objective.
        passes: The number of passes over the samples.
    """

    def __init__(
        self,
        ranks: Ranks,
        x: Any,
        y: np.ndarray,
        costs: np.ndarray,
        classes: int,
        *,
        constant: float = 0.0,
        seed: Any = None,
        dual: np.ndarray | None = None,
    ) -> None:
        self._ranks, self._y = ranks, y
        self._x = csr_array(x)
        self._constant = constant
        if constant:
            column = np.full((x.shape[0], 1), constant, x.dtype)
            self._x = hstack([self._x, csr_array(column)], format="csr")
        dtype = x.dtype
        self._sparse = ranks.sparse(self._x)
        self._costs = costs.astype(dtype)
        self._squares = np.asarray(self._x.multiply(self._x).sum(axis=1), dtype).ravel()
        with ranks.together("fit"):
            self._rng = check_random_state(seed)
            self._kernel = self._compiled()
        words = self._x.indices.astype(np.int64), self._x.indptr.astype(np.int64)
        self._rows = self._x.data, *words
        self.w = np.zeros((classes, self._x.shape[1]), dtype)
        self._total = sfb.optim.SGD(self.w, lr=1.0)
        self.gap, self.passes = np.inf, 0
        fits = dual is not None and dual.shape == (len(y), classes)
        self.dual = np.ascontiguousarray(self._feasible(dual) if fits else self._first(classes), dtype)
        self._warm = any(ranks.gather(fits))
        if self._warm:
            self.w[:] = ranks.sum(np.ascontiguousarray((self._x.T @ self._coefficients()).T, np.float64))

    def run(self, tol: float, max_iter: int) -> bool:
        """Take passes until the gap is at most ``tol``, and return whether it is; collective."""
        if self._warm and self.passes == 0:
            self.gap = self._gap()
            if self.gap <= tol:
                return True
        samples = len(self._y)
        rounds = -(-max(self._ranks.gather(samples)) // _SAMPLES)
        own = np.ascontiguousarray(self.w.T)  # as this rank sees it between exchanges
        while self.passes < max_iter:
            for order in np.array_split(self._rng.permutation(samples).astype(np.int64), rounds):
                change = np.empty((len(order), self.w.shape[0]), self.w.dtype)
                self._step(own, order, float(self._ranks.size), change)
                if self._ranks.comm is not None:
                    features = self._x[order]
                    factors = sfb.Factors(-change, features if self._sparse else features.toarray())
                    self._ranks.comm.Allreduce(factors, self._total)
                    np.copyto(own, self.w.T)
            if self._ranks.comm is None:
                np.copyto(self.w, own.T)
            self.passes += 1
            self.gap = self._gap()
            if self.gap <= tol:
                return True
        return False

    @property
    def coef(self) -> np.ndarray:
        """K×D coefficients."""
        return np.ascontiguousarray(self.w[:, :-1] if self._constant else self.w)

    @property
    def intercept(self) -> np.ndarray:
        """K intercepts."""
        return self.w[:, -1] * self.w.dtype.type(self._constant) if self._constant else np.zeros_like(self.w[:, 0])

    @abstractmethod
    def _compiled(self) -> Any:
        """Return the kernel."""

    @abstractmethod
    def _first(self, classes: int) -> np.ndarray:
        """Return the dual variables of w = 0."""

    @abstractmethod
    def _feasible(self, dual: Any) -> np.ndarray:
        """Return dual variables near ``dual`` that these costs allow."""

    @abstractmethod
    def _coefficients(self) -> np.ndarray:
        """Return the N×K c for which w = Σ c xᵀ."""

    @abstractmethod
    def _step(self, own: np.ndarray, order: np.ndarray, factor: float, change: np.ndarray) -> None:
        """Raise the dual by the samples in ``order``, change ``own`` (D×K), and fill ``change``; see the kernels."""

    @abstractmethod
    def _gap(self) -> float:
        """Return the gap between the objective and its dual, relative to the objective; collective."""


class Hinge(Ascent):
    """The dual of the multiclass hinge loss of Crammer and Singer; the constant feature is penalised.

    The dual variables α of a sample are at most its cost for its class, at most 0 for others, and sum to 0. See
    `sfb.kernels.coordinates`.
    """

    def _compiled(self) -> Any:
        return compiled("coordinates").multiclass_hinge

    def _first(self, classes: int) -> np.ndarray:
        return np.zeros((len(self._y), classes))

    def _feasible(self, dual: Any) -> np.ndarray:
        own = dual[np.arange(len(self._y)), self._y]
        fits = (dual <= 0).sum(axis=1) >= dual.shape[1] - (own > 0)  # of other labels otherwise
        shrink = np.minimum(1, self._costs / np.where(own > 0, own, 1)) * fits
        return dual * shrink[:, np.newaxis]

    def _coefficients(self) -> np.ndarray:
        return self.dual

    def _step(self, own: np.ndarray, order: np.ndarray, factor: float, change: np.ndarray) -> None:
        self._kernel(*self._rows, self._y, self._costs, self._squares, self.dual, own, order, factor, change)

    def _gap(self) -> float:
        scores, picked = np.asarray(self._x @ self.w.T), (np.arange(len(self._y)), self._y)
        margins = scores - scores[picked][:, np.newaxis] + 1
        margins[picked] = 0
        loss = np.sum(self._costs * margins.max(axis=1, initial=0), dtype=np.float64)
        # Σ over k ≠ y of α = −α[y], as the variables of a sample sum to 0.
        sums = self._ranks.sum(np.array([loss, np.sum(self.dual[picked], dtype=np.float64)]))
        square = float(np.vdot(self.w, self.w))
        primal, dual = 0.5 * square + sums[0], sums[1] - 0.5 * square
        return float((primal - dual) / primal) if primal > 0 else 0.0


class Entropy(Ascent):
    """The dual of the multinomial logistic loss; no penalty counts the intercepts.

    The dual variables of a sample are a distribution over classes. See `sfb.kernels.multinomial`. The intercepts b are
    multipliers of the constraint that Σ costs·(onehot(y) − p) vanishes. The method of multipliers finds them: a
    constant feature stands for a penalty of ½‖b − b₀‖²/constant², and b₀ moves to b after each pass (Bertsekas,
    "Constrained Optimization and Lagrange Multiplier Methods", 1982, section 2.2).
    """

    def _compiled(self) -> Any:
        return compiled("multinomial").multinomial_entropy

    def _first(self, classes: int) -> np.ndarray:
        return np.eye(classes)[self._y]

    def _feasible(self, dual: Any) -> np.ndarray:
        return dual

    @cached_property
    def _offsets(self) -> np.ndarray:
        """The K intercepts b₀."""
        return np.zeros(len(self.w), self.w.dtype)

    def _coefficients(self) -> np.ndarray:
        wanted = -self.dual.astype(np.float64)
        wanted[np.arange(len(self._y)), self._y] += 1
        return self._costs[:, np.newaxis] * wanted

    def start_at(self, intercept: np.ndarray) -> None:
        """Take b₀, K numbers, from a fit before."""
        self._offsets[:] = intercept

    @property
    def intercept(self) -> np.ndarray:
        """K intercepts."""
        return super().intercept + self._offsets

    def run(self, tol: float, max_iter: int) -> bool:
        """Take passes until the gap is at most ``tol``, and return whether it is; collective."""
        while self.passes < max_iter:
            if super().run(tol, self.passes + 1):
                return True
            if self._constant:
                self._offsets[:] = self.intercept
        return False

    def _step(self, own: np.ndarray, order: np.ndarray, factor: float, change: np.ndarray) -> None:
        rest = self._costs, self._squares, self._offsets, self.dual, own, order, factor, change
        self._kernel(*self._rows, *rest)

    def _gap(self) -> float:
        picked = np.arange(len(self._y)), self._y
        scores = np.asarray(self._x @ self.w.T) + self._offsets
        losses = logsumexp(scores, axis=1) - scores[picked] if len(self._y) else np.zeros(0)
        terms = xlogy(self.dual, self.dual).sum(axis=1) - self.dual @ self._offsets + self._offsets[self._y]
        sums = self._ranks.sum(
            np.array([np.sum(self._costs * each, dtype=np.float64) for each in (losses, terms)], np.float64)
        )
        square = float(np.vdot(self.w, self.w))
        # The penalty of b − b₀ is no part of the objective: what it may hide counts as gap.
        moved = float(np.vdot(self.w[:, -1], self.w[:, -1])) if self._constant else 0.0
        primal, dual = 0.5 * square + sums[0], -0.5 * square - sums[1]
        objective = primal - 0.5 * moved
        return float((primal - dual + 0.5 * moved) / objective) if objective > 0 else 0.0
