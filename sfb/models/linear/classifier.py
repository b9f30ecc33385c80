"""What linear classifiers share: scores, labels, and gradient descent by mini-batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

import sfb
from sfb.models.collective import batches
from sfb.models.estimator import Classifier, Shard
from sfb.models.linear.descent import Descent, weights_of_batches
from sfb.models.nets.network import Network
from sfb.models.ranks import Ranks

__all__ = ["Linear", "arrays_of"]

# The steps after which the learning rate of a stream has fallen to 1/√2 of the first.
_STEPS = 100
# Products with the samples that estimate how curved the loss is.
_ITERATIONS = 8


class Linear(Classifier):
    """A classifier by linear scores, of which every rank fits its shard of the samples.

    Attributes:
        coef_: Coefficients, K×D, or 1×D for two classes; the same bits on all ranks.
        intercept_: Intercepts, K, or 1 for two classes.
        t_: Steps of gradient descent that led to them.
    """

    C: float
    fit_intercept: bool
    batch_size: int
    max_iter: int
    coef_: np.ndarray
    intercept_: np.ndarray
    t_: int

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of local samples, N×K, or N for two classes."""
        x = self._rows(X)
        scores = np.asarray(x @ self.coef_.T) + self.intercept_
        return scores.ravel() if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels of local samples, N×D features."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)]

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        return {
            "kind": "linear",
            "model": type(self).__name__,
            "out_activation": self._link(),
            "coef": self.coef_,
            "intercept": self.intercept_,
            "classes": self.classes_,
        }

    def _link(self) -> str:
        """Return how scores become probabilities: logistic, softmax, or identity for not at all."""
        return "identity"

    def _descent(
        self, ranks: Ranks, shard: Shard, loss: str, coef: np.ndarray, intercept: np.ndarray, rule: sfb.optim.Optimizer
    ) -> Descent:
        """Return gradient descent for a loss of `sfb.models.losses` from K×D coefficients on; collective."""
        network = Network([coef.shape[1], len(coef)], loss=loss, dtype=shard.x.dtype)
        (layer,) = network.layers
        layer.weights.array[:] = coef
        layer.bias.array[:] = intercept
        network.sample_weights = shard.weights
        network.sparse = ranks.sparse(shard.x)
        # Intercepts that are the coefficients of a constant feature are no biases.
        return Descent(ranks, network, rule, biases=self.fit_intercept and coef.shape[1] == self.n_features_in_)

    def _curvature(self, ranks: Ranks, shard: Shard) -> float:
        """Return an estimate of the largest eigenvalue of the mean of zzᵀ, z = (x, 1); collective.

        Half of it bounds the curvature of the mean loss, as the Hessian of the cross-entropy by the scores is at most
        ½ (Böhning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44, 1992, section 2). Power
        iteration starts from the mean of z, which lies near the eigenvector where features have one sign.
        """
        x, weights = shard.x, shard.weights
        counted = np.ones(len(shard.y)) if weights is None else weights.astype(np.float64)
        found, scores = 0.0, counted
        for _ in range(_ITERATIONS):
            vector = ranks.sum(np.append(np.asarray(x.T @ scores, np.float64).ravel(), scores.sum())) / shard.total
            found = float(np.linalg.norm(vector))
            if not found > 0:
                break
            vector /= found
            scores = counted * (np.asarray(x @ vector[:-1]).ravel() + self.fit_intercept * vector[-1])
        return max(found, np.finfo(float).tiny)

    def _pass(
        self,
        ranks: Ranks,
        descent: Descent,
        shard: Shard,
        order: np.ndarray,
        rate: Callable[[int], float],
        penalty: dict[str, float],
    ) -> tuple[float, int]:
        """Take a step with each batch of all ranks; collective.

        Args:
            ranks: The ranks.
            descent: Gradient descent of a network with one layer.
            shard: The samples of this rank.
            order: The order of these samples.
            rate: Returns the learning rate of a step of this pass, from 0 on.
            penalty: Settings of the rule for coefficients.

        Returns:
            The sum of the losses of all samples, each before its step, and the number of steps.
        """
        parts = list(batches(order, ranks.gather(len(order)), self.batch_size))
        weights = None if shard.weights is None else weights_of_batches(ranks, shard.weights, parts)
        value, steps = np.zeros(1), 0
        for i, (mine, count) in enumerate(parts):
            size = count if weights is None else float(weights[i])
            if size > 0:
                value += descent.step(shard.x, shard.y, mine, size, rate(steps), **penalty)
                steps += 1
        return float(ranks.sum(value)[0]), steps

    def _present(self, ranks: Ranks, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients and intercepts of rank 0, zeros before the first fit; collective.

        Raises:
            ValueError: Those of rank 0 are of another shape; on every rank.
        """
        found = getattr(self, "coef_", None), getattr(self, "intercept_", None)
        coef, intercept = ranks.first(found)
        if coef is None:
            return np.zeros(shape), np.zeros(shape[0])
        if coef.shape != shape:
            raise ValueError(f"warm_start needs coef_ of shape {shape}, got {coef.shape}")
        return coef, intercept

    def _go_on(
        self,
        ranks: Ranks,
        shard: Shard,
        loss: str,
        coef: np.ndarray,
        intercept: np.ndarray,
        l1_ratio: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take one pass of proximal gradient descent over a part of a stream; collective.

        The penalty counts as in the objective of all samples so far, those of an earlier `fit` included. The learning
        rate of step t is the first rate/√(1 + t/100).

        Args:
            ranks: The ranks.
            shard: The samples of this rank.
            loss: Name of the loss.
            coef: K×D coefficients.
            intercept: K intercepts.
            l1_ratio: Part of the L1 penalty.

        Returns:
            The new coefficients and intercepts.
        """
        before = getattr(self, "_seen", 0.0), getattr(self, "_rate", None), getattr(self, "t_", 0)
        seen, found, taken = ranks.first(before)
        self._seen = seen + shard.total
        self._rate = first = found or 2 / self._curvature(ranks, shard)
        strength = 1 / (self.C * self._seen)
        penalty = {"l1": strength * l1_ratio, "l2": strength * (1 - l1_ratio)}
        descent = self._descent(ranks, shard, loss, coef, intercept, sfb.optim.Proximal(lr=0.0))

        def rate(step: int) -> float:
            return first / np.sqrt(1 + (taken + step) / _STEPS)

        _, steps = self._pass(ranks, descent, shard, np.arange(len(shard.y)), rate, penalty)
        self.t_ = taken + steps
        return arrays_of(descent)

    def _fitted(self, shard: Shard) -> None:
        """Let later parts of a stream go on from this fit."""
        self._seen, self._rate, self.t_ = shard.total, None, int(shard.total / self.batch_size)

    def _warn(self, ranks: Ranks, units: str, advice: str) -> None:
        """Warn on rank 0 that the solver stopped early."""
        if ranks.rank == 0:
            what = f"the solver stopped at max_iter={self.max_iter} {units}: {advice}"
            warnings.warn(what, ConvergenceWarning, stacklevel=4)


def arrays_of(descent: Descent) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of the coefficients and intercepts of a network with one layer."""
    (layer,) = descent.network.layers
    return layer.weights.array.copy(), layer.bias.array[0].copy()
