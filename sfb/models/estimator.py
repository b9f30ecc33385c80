"""What estimators share: their ranks, and the checks of what each rank passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from sfb.models.ranks import Ranks

__all__ = ["Classifier", "Shard"]

_FLOATS = (np.float64, np.float32)


@dataclass(frozen=True)
class Shard:
    """The samples of one rank, checked.

    Attributes:
        x: N×D features, a C-contiguous array or a CSR matrix, of the same type on all ranks.
        y: N indices of classes.
        weights: N weights, of the type of x.
        total: The sum of the weights of all ranks.
    """

    x: Any
    y: np.ndarray
    weights: np.ndarray
    total: float


class _Estimator(BaseEstimator):
    """An estimator whose ranks each call `fit` with a shard of the samples."""

    comm: Any

    def __sklearn_clone__(self) -> _Estimator:
        # A communicator is no value that can be copied.
        params = {
            name: clone(value, safe=False) for name, value in self.get_params(deep=False).items() if name != "comm"
        }
        return type(self)(**params, comm=self.comm)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "comm": None}

    def _rows(self, x: Any) -> Any:
        """Return features to predict from, checked."""
        check_is_fitted(self)
        return validate_data(self, x, accept_sparse="csr", dtype=_FLOATS, reset=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class Classifier(ClassifierMixin, _Estimator):
    """A classifier whose ranks each call `fit` with a shard of the samples.

    Attributes:
        classes_: The K labels that occur on any rank, in ascending order.
        n_features_in_: The number of features D.
    """

    class_weight: Any
    classes_: np.ndarray

    def _shard(self, ranks: Ranks, x: Any, y: Any, sample_weight: Any) -> Shard:
        """Check what the ranks pass to `fit`, and encode the labels; collective.

        Raises:
            TypeError, ValueError: What a rank passed is wrong, ranks differ in their features, there are no samples on
                any rank, or all have the same label; on every rank.
        """
        labels = np.empty(0)
        with ranks.together("fit"):
            x, y = validate_data(
                self, x, y, accept_sparse="csr", dtype=_FLOATS, ensure_min_samples=int(ranks.size == 1)
            )
            if len(y):
                check_classification_targets(y)
                labels = np.unique(y)
            weights = np.empty(0)
            if len(y):
                weights = _check_sample_weight(
                    sample_weight, x, dtype=np.float64, ensure_non_negative=True, allow_all_zero_weights=True
                )
        said = ranks.gather((self.n_features_in_, x.dtype, labels))
        with ranks.together("fit"):
            if len({features for features, _, _ in said}) > 1:
                raise ValueError(f"x has {self.n_features_in_} features on this rank, and another number on others")
            known = [each for _, _, each in said if len(each)]
            if not known:
                raise ValueError("no rank has a sample: found array with 0 sample(s) (minimum of 1 is required)")
            if len({each.dtype.kind in "OUST" for each in known}) > 1:
                raise TypeError("labels are text on some ranks and numbers on others")
            self.classes_ = np.unique(np.concatenate(known))
            if len(self.classes_) < 2:
                raise ValueError(f"a classifier needs 2 classes, got one class: all samples are {self.classes_[0]!s}")
            dtype = np.result_type(*(kind for _, kind, _ in said))
            indices = np.searchsorted(self.classes_, y) if len(y) else np.empty(0, np.int64)
            factors = self._class_weights()
        if factors is None:  # "balanced"
            counts = ranks.sum(np.bincount(indices, weights, minlength=len(self.classes_)))
            factors = counts.sum() / (len(counts) * np.where(counts, counts, 1))
        weights = weights * factors[indices]
        total = float(ranks.sum(np.array([weights.sum()]))[0])
        with ranks.together("fit"):
            if not total > 0:
                raise ValueError("the weights of all samples are 0")
        return Shard(x.astype(dtype, copy=False), indices, weights.astype(dtype), total)

    def _class_weights(self) -> np.ndarray | None:
        """Return the weight of each class, or None if classes are to weigh the same."""
        factors = np.ones(len(self.classes_))
        if self.class_weight == "balanced":
            return None
        if self.class_weight is not None:
            if not isinstance(self.class_weight, dict):
                raise ValueError(f"class_weight must be None, 'balanced' or a dict, got {self.class_weight!r}")
            unknown = set(self.class_weight) - set(self.classes_.tolist())
            if unknown:
                raise ValueError(f"class_weight names {sorted(map(str, unknown))}, which are no labels")
            for i, label in enumerate(self.classes_.tolist()):
                factors[i] = self.class_weight.get(label, 1.0)
        return factors
