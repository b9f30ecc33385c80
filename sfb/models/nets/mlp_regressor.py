"""Regressor by a multilayer perceptron, data-parallel."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import column_or_1d

from sfb.models.estimator import Shard
from sfb.models.finite import check_narrowed
from sfb.models.nets.network import Network
from sfb.models.nets.perceptron import Perceptron
from sfb.models.ranks import Ranks

__all__ = ["MLPRegressor"]


class MLPRegressor(RegressorMixin, Perceptron):
    """Regressor by a perceptron of any depth, as `sklearn.neural_network.MLPRegressor`.

    It minimises half the squared error, the mean over outputs in reports. Parameters and attributes are those of
    `MLPClassifier`, but for ``class_weight`` and ``classes_``; the score of samples held out is R².

    >>> import numpy as np
    >>> from sfb.models import MLPRegressor
    >>> X = np.linspace(-1, 1, 64).reshape(-1, 1)
    >>> model = MLPRegressor((32,), learning_rate_init=0.03, max_iter=400, random_state=0).fit(X, X.ravel() ** 2)
    >>> model.score(X, X.ravel() ** 2) > 0.98
    True
    """

    loss = "squared"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N targets, or N×M.
            sample_weight: N weights ≥ 0; None for 1 each.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong, or the loss is no longer finite; on
                every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            shard = self._targets(ranks, X, y, sample_weight, "fit")
            self._fit(ranks, shard, shard.y.shape[1])
        self.out_activation_ = "identity"
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train once on a part of a stream of samples; collective.

        Weights and moments go on from the parts before, and so do they in a copy by pickle.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N targets, or N×M.
            sample_weight: N weights ≥ 0; None for 1 each.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: As `fit` does.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks, "partial_fit")
            shard = self._targets(ranks, X, y, sample_weight, "partial_fit")
            self._fit_part(ranks, shard, shard.y.shape[1])
        self.out_activation_ = "identity"
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the targets of local samples, N, or N×M if `fit` took N×M."""
        found = self._outputs(X)
        return found if self._target_shape else found.ravel()

    def _contents(self) -> dict[str, Any]:
        return super()._contents() | {"matrix": bool(self._target_shape)}

    def _targets(self, ranks: Ranks, x: Any, y: Any, sample_weight: Any, call: str) -> Shard:
        """Return the samples of this rank, their targets N×M, checked; collective."""
        reset = call == "fit" or not hasattr(self, "coefs_")
        x, y = self._arrays(ranks, x, y, call=call, reset=reset, multi_output=True, y_numeric=True)
        with ranks.together(call):
            if y.ndim == 2 and y.shape[1] == 1:
                y = column_or_1d(y, warn=True)
            check_narrowed(y, x.dtype, name="y")
        widths = {targets for targets in ranks.gather(y.shape[1:] if len(y) else None) if targets is not None}
        with ranks.together(call):
            if len(widths) > 1:
                raise ValueError(f"y has {y.shape[1:] or 1} targets on this rank, and another number on others")
        (self._target_shape,) = widths
        outputs = self._target_shape[0] if self._target_shape else 1
        return self._weigh(ranks, x, y.astype(x.dtype).reshape(len(y), outputs), sample_weight, call=call)

    def _score(self, ranks: Ranks, network: Network, shard: Shard, rows: np.ndarray) -> float:
        weights = np.ones((len(rows), 1)) if shard.weights is None else shard.weights[rows, np.newaxis]
        targets = shard.y[rows].astype(np.float64)
        error = network.outputs(shard.x, rows) - targets
        count = max(float(ranks.sum(np.array([weights.sum()], np.float64))[0]), np.finfo(float).tiny)
        mean = ranks.sum((weights * targets).sum(axis=0)) / count
        sums = ranks.sum(np.stack([(weights * error**2).sum(axis=0), (weights * (targets - mean) ** 2).sum(axis=0)]))
        return float(np.mean(1 - sums[0] / np.where(sums[1], sums[1], 1)))
