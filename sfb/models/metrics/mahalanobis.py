"""The use of a linear metric: transformation, distances of pairs, nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d

from sfb.models.estimator import Estimator
from sfb.models.finite import naming_samples

__all__ = ["Mahalanobis"]


class Mahalanobis(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    """A metric ‖L(x − y)‖ with components L, R×D; its methods are those of the package metric-learn.

    Attributes:
        components_: L, R×D.
        references_: Samples as `transform` gives them, N×R, and their labels, N; or None.
    """

    components_: np.ndarray
    references_: tuple[np.ndarray, np.ndarray] | None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def transform(self, X: Any) -> np.ndarray:
        """Return XLᵀ for local samples, N×D features: N×R, whose Euclidean distances are those of the metric."""
        return np.asarray(self._rows(X) @ self.components_.T)

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy of 1-NN for local samples: the part whose nearest reference has their label.

        The references are the samples that all ranks passed to `fit`. No rank waits for another.

        Args:
            X: N×D features.
            y: N labels.

        Raises:
            ValueError: There are no references.
        """
        z = self.transform(X)
        if self.references_ is None:
            raise ValueError("score needs references: call fit(X, y) with store_references=True")
        samples, labels = self.references_
        return float(np.mean(labels[pairwise_distances_argmin(z, samples)] == column_or_1d(y)))

    def pair_distance(self, pairs: Any) -> np.ndarray:
        """Return the distance of each pair under the metric.

        Args:
            pairs: N×2×D features.

        Returns:
            N distances.
        """
        check_is_fitted(self)
        with naming_samples(pairs, x_name="pairs"):
            pairs = check_array(pairs, allow_nd=True, dtype=(np.float64, np.float32), input_name="pairs")
        if pairs.ndim != 3 or pairs.shape[1:] != (2, self.n_features_in_):
            raise ValueError(f"pairs must be N×2×{self.n_features_in_}, got {pairs.shape}")
        return np.linalg.norm((pairs[:, 0] - pairs[:, 1]) @ self.components_.T, axis=1)

    def pair_score(self, pairs: Any) -> np.ndarray:
        """Return the similarity of each pair: the negative of `pair_distance`."""
        return -self.pair_distance(pairs)

    def get_metric(self) -> Callable[..., float]:
        """Return the metric as a function of two vectors, which scikit-learn's estimators take as ``metric``.

        The function takes two vectors of D features, and ``squared``; later fits do not change it.
        """
        check_is_fitted(self)
        components = self.components_.copy()

        def metric(u: Any, v: Any, squared: bool = False) -> float:
            """Return the distance of two vectors, or its square."""
            projected = components @ (np.asarray(u) - np.asarray(v))
            square = float(projected @ projected)
            return square if squared else float(np.sqrt(square))

        return metric

    def get_mahalanobis_matrix(self) -> np.ndarray:
        """Return LᵀL, D×D, the matrix M of the squared distance (x − y)ᵀM(x − y)."""
        check_is_fitted(self)
        return self.components_.T @ self.components_

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        found: dict[str, Any] = {"kind": "metric", "model": type(self).__name__, "components": self.components_}
        if self.references_ is not None:
            references, labels = self.references_
            classes, indices = np.unique(labels, return_inverse=True)
            found |= {"kind": "nearest", "references": references, "labels": indices, "classes": classes}
        return found
