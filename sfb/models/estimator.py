"""What estimators share: their ranks, and the checks of what each rank passes."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from sfb.models.ranks import Ranks

__all__ = ["Classifier", "Estimator", "Number", "Shard"]

_FLOATS = (np.float64, np.float32)


@dataclass(frozen=True)
class Number:
    """What a parameter must be.

    Attributes:
        least: Its least value, or what it must exceed.
        most: Its largest value.
        whole: Whether it must be an integer.
        above: Whether it must exceed ``least``.
    """

    least: float
    most: float = np.inf
    whole: bool = False
    above: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError if a value is not of this kind."""
        right = isinstance(value, Integral if self.whole else Real) and not isinstance(value, (bool, np.bool_))
        if not right or not self.least <= value <= self.most or (self.above and value == self.least):
            kind = "an integer" if self.whole else "a number"
            limit = f"{'>' if self.above else '≥'} {self.least}" + (f" and ≤ {self.most}" if self.most < np.inf else "")
            raise ValueError(f"{name} must be {kind} {limit}, got {value!r}")


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


class Estimator(BaseEstimator):
    """An estimator whose ranks each call `fit` with a shard of the samples.

    Attributes:
        numbers: What parameters that are numbers must be.
        choices: The names that other parameters may have.
        n_features_in_: The number of features D.
    """

    comm: Any
    numbers: ClassVar[dict[str, Number]] = {}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __sklearn_clone__(self) -> Estimator:
        # A communicator is no value that can be copied.
        params = {
            name: clone(value, safe=False) for name, value in self.get_params(deep=False).items() if name != "comm"
        }
        return type(self)(**params, comm=self.comm)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "comm": None}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _contents(self) -> dict[str, Any]:
        """Return what `sfb.models.save` writes: arrays, and settings for the header."""
        raise TypeError(f"{type(self).__name__} has no model file")

    def _agree(self, ranks: Ranks) -> None:
        """Check the parameters; collective.

        Raises:
            ValueError: A parameter is wrong, or differs between ranks; on every rank.
        """
        with ranks.together("fit"):
            self._check_parameters()
        # Each rank may have a seed of its own.
        own = {name: value for name, value in self.get_params().items() if name not in ("comm", "random_state")}
        ranks.compare("fit", f"{type(self).__name__} of {own}")

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter is wrong."""
        for name, number in self.numbers.items():
            number.check(name, getattr(self, name))
        for name, names in self.choices.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}")

    def _arrays(self, ranks: Ranks, x: Any, y: Any, **options: Any) -> tuple[Any, np.ndarray]:
        """Return features and targets of this rank, checked, the features of the same type on all ranks; collective.

        Args:
            ranks: The ranks.
            x: What the user passed.
            y: What the user passed.
            **options: Options of `sklearn.utils.validation.validate_data`.

        Raises:
            TypeError, ValueError: What a rank passed is wrong, or ranks differ in their features, or there are no
                samples on any rank; on every rank.
        """
        least = int(ranks.size == 1)
        with ranks.together("fit"):
            x, y = validate_data(self, x, y, accept_sparse="csr", dtype=_FLOATS, ensure_min_samples=least, **options)
        said = ranks.gather((self.n_features_in_, x.dtype, len(y)))
        with ranks.together("fit"):
            if len({features for features, _, _ in said}) > 1:
                raise ValueError(f"x has {self.n_features_in_} features on this rank, and another number on others")
            if not any(samples for _, _, samples in said):
                raise ValueError("no rank has a sample: found array with 0 sample(s) (minimum of 1 is required)")
        return x.astype(np.result_type(*(kind for _, kind, _ in said)), copy=False), y

    def _rows(self, x: Any) -> Any:
        """Return features to predict from, checked."""
        check_is_fitted(self)
        return validate_data(self, x, accept_sparse="csr", dtype=_FLOATS, reset=False)


class Classifier(ClassifierMixin, Estimator):
    """A classifier whose ranks each call `fit` with a shard of the samples.

    Attributes:
        classes_: The K labels that occur on any rank, in ascending order.
        n_features_in_: The number of features D.
    """

    class_weight: Any
    classes_: np.ndarray

    def _encode(self, ranks: Ranks, y: np.ndarray) -> np.ndarray:
        """Find the classes of all ranks, and return the index of each label; collective.

        Raises:
            TypeError, ValueError: The labels of a rank are none, or do not go with those of others, or all samples have
                the same label; on every rank.
        """
        labels = np.empty(0)
        with ranks.together("fit"):
            if len(y):
                check_classification_targets(y)
                labels = np.unique(y)
        known = [each for each in ranks.gather(labels) if len(each)]
        with ranks.together("fit"):
            if len({each.dtype.kind in "OUST" for each in known}) > 1:
                raise TypeError("labels are text on some ranks and numbers on others")
            self.classes_ = np.unique(np.concatenate(known))
            if len(self.classes_) < 2:
                raise ValueError(f"a classifier needs 2 classes, got one class: all samples are {self.classes_[0]!s}")
        return np.searchsorted(self.classes_, y) if len(y) else np.empty(0, np.int64)

    def _shard(self, ranks: Ranks, x: Any, y: Any, sample_weight: Any) -> Shard:
        """Check what the ranks pass to `fit`, and encode the labels; collective.

        Raises:
            TypeError, ValueError: As `_arrays` and `_encode` do, or weights are wrong; on every rank.
        """
        x, y = self._arrays(ranks, x, y)
        indices = self._encode(ranks, y)
        weights = np.ones(len(y))
        with ranks.together("fit"):
            if sample_weight is not None:
                weights = check_array(sample_weight, dtype=np.float64, ensure_2d=False, ensure_min_samples=0)
                if weights.shape != y.shape:
                    raise ValueError(f"sample_weight must have shape {y.shape}, got {weights.shape}")
                if (weights < 0).any():
                    raise ValueError("sample_weight holds negative values")
            factors = self._class_weights()
        if factors is None:  # "balanced"
            counts = ranks.sum(np.bincount(indices, weights, minlength=len(self.classes_)))
            factors = counts.sum() / (len(counts) * np.where(counts, counts, 1))
        weights = weights * factors[indices]
        total = float(ranks.sum(np.array([weights.sum()]))[0])
        with ranks.together("fit"):
            if not total > 0:
                raise ValueError("all sample weights are zero")
        return Shard(x, indices, weights.astype(x.dtype), total)

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
