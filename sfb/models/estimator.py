"""What estimators share: their ranks, and the checks of what each rank passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from sfb.models.finite import check_narrowed, naming_samples
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
        y: N indices of classes, or N or N×M targets that are numbers.
        weights: N weights, of the type of x; None on all ranks if each is 1.
        total: The sum of the weights of all ranks.
    """

    x: Any
    y: np.ndarray
    weights: np.ndarray | None
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

    def _agree(self, ranks: Ranks, call: str = "fit") -> None:
        """Check the parameters; collective.

        Args:
            ranks: The ranks.
            call: The user's call, for messages.

        Raises:
            ValueError: A parameter is wrong, or differs between ranks; on every rank.
        """
        with ranks.together(call):
            self._check_parameters()
        # Each rank may have a seed of its own.
        own = {name: value for name, value in self.get_params().items() if name not in ("comm", "random_state")}
        ranks.compare(call, f"{type(self).__name__} of {own}")

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter is wrong."""
        for name, number in self.numbers.items():
            number.check(name, getattr(self, name))
        for name, names in self.choices.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}")

    def _arrays(
        self, ranks: Ranks, x: Any, y: Any, *, call: str = "fit", reset: bool = True, **options: Any
    ) -> tuple[Any, np.ndarray]:
        """Return features and targets of this rank, checked, the features of the same type on all ranks; collective.

        Args:
            ranks: The ranks.
            x: What the user passed.
            y: What the user passed.
            call: The user's call, for messages.
            reset: Whether these samples tell the number of features, not those of an earlier call.
            **options: Options of `sklearn.utils.validation.validate_data`.

        Raises:
            TypeError, ValueError: What a rank passed is wrong, or ranks differ in their features, or there are no
                samples on any rank; on every rank.
        """
        options |= {"accept_sparse": "csr", "dtype": _FLOATS, "ensure_min_samples": int(ranks.size == 1)}
        with ranks.together(call), naming_samples(x, y):
            x, y = validate_data(self, x, y, reset=reset, order="C", **options)
        said = ranks.gather((self.n_features_in_, x.dtype, len(y)))
        with ranks.together(call):
            if len({features for features, _, _ in said}) > 1:
                raise ValueError(f"x has {self.n_features_in_} features on this rank, and another number on others")
            if not any(samples for _, _, samples in said):
                raise ValueError("no rank has a sample: found array with 0 sample(s) (minimum of 1 is required)")
        return x.astype(np.result_type(*(kind for _, kind, _ in said)), copy=False), y

    def _weigh(
        self, ranks: Ranks, x: Any, y: np.ndarray, sample_weight: Any, factors: Any = None, *, call: str = "fit"
    ) -> Shard:
        """Return the samples of this rank with their weights; collective.

        Args:
            ranks: The ranks.
            x: Features, checked.
            y: Targets, checked.
            sample_weight: What the user passed.
            factors: What to multiply the weights by: a function of the weights, or None; on all ranks alike.
            call: The user's call, for messages.

        Raises:
            ValueError: Weights are wrong, or all zero; on every rank.
        """
        given = any(ranks.gather(sample_weight is not None))
        weights = np.ones(len(y))
        with ranks.together(call):
            if sample_weight is not None:
                with naming_samples(sample_weight, x_name="sample_weight"):
                    weights = check_array(
                        sample_weight,
                        dtype=np.float64,
                        ensure_2d=False,
                        ensure_min_samples=0,
                        input_name="sample_weight",
                    )
                if weights.shape != (len(y),):
                    raise ValueError(f"sample_weight must have shape {(len(y),)}, got {weights.shape}")
                if (weights < 0).any():
                    raise ValueError("sample_weight holds negative values")
        if factors is not None:
            weights = weights * factors(weights)
        total = float(ranks.sum(np.array([weights.sum()]))[0])
        with ranks.together(call):
            if not total > 0:
                raise ValueError("all sample weights are zero")
            check_narrowed(weights, x.dtype, name="sample_weight")
        return Shard(x, y, weights.astype(x.dtype) if given or factors is not None else None, total)

    def _rows(self, x: Any) -> Any:
        """Return features to predict from, checked."""
        check_is_fitted(self)
        with naming_samples(x):
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
            self.classes_ = _union(known)
        return np.searchsorted(self.classes_, y) if len(y) else np.empty(0, np.int64)

    def _encode_known(self, ranks: Ranks, y: np.ndarray, classes: Any) -> np.ndarray:
        """Return the index of each label of a part of a stream, whose first call states the classes; collective.

        Raises:
            TypeError, ValueError: The classes are missing, or others than before, or a label is none of them; on every
                rank.
        """
        first = not hasattr(self, "classes_")
        ranks.compare("partial_fit", f"classes {'not ' if first else ''}known before")
        stated = np.empty(0)
        with ranks.together("partial_fit"):
            if classes is not None:
                stated = np.unique(column_or_1d(classes))
            elif first:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            if classes is not None and not first and not np.array_equal(stated, self.classes_):
                raise ValueError(
                    f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
                )
        if first:
            said = ranks.gather(stated)
            with ranks.together("partial_fit"):
                found = _union(said)
                if not all(np.array_equal(each, found) for each in said):
                    raise ValueError(f"classes are {stated!r} on this rank, and others on other ranks")
                self.classes_ = found
        with ranks.together("partial_fit"):
            if len(y):
                check_classification_targets(y)
                unknown = np.setdiff1d(y, self.classes_)
                if len(unknown):
                    raise ValueError(f"the labels {unknown[:5]} are none of the classes {self.classes_!r}")
        return np.searchsorted(self.classes_, y) if len(y) else np.empty(0, np.int64)

    def _shard(self, ranks: Ranks, x: Any, y: Any, sample_weight: Any) -> Shard:
        """Check what the ranks pass to `fit`, and encode the labels; collective.

        Raises:
            TypeError, ValueError: As `_arrays` and `_encode` do, or weights are wrong; on every rank.
        """
        x, y = self._arrays(ranks, x, y)
        indices = self._encode(ranks, y)
        return self._weigh(ranks, x, indices, sample_weight, self._class_factors(ranks, indices, "fit"))

    def _part(self, ranks: Ranks, x: Any, y: Any, classes: Any, sample_weight: Any) -> Shard:
        """Check what the ranks pass to `partial_fit`, and encode the labels; collective.

        Raises:
            TypeError, ValueError: As `_arrays` and `_encode_known` do, or weights are wrong; on every rank.
        """
        x, y = self._arrays(ranks, x, y, call="partial_fit", reset=not hasattr(self, "classes_"))
        indices = self._encode_known(ranks, y, classes)
        factors = self._class_factors(ranks, indices, "partial_fit")
        return self._weigh(ranks, x, indices, sample_weight, factors, call="partial_fit")

    def _class_factors(self, ranks: Ranks, y: np.ndarray, call: str) -> Callable[[np.ndarray], np.ndarray] | None:
        """Return the function that gives each sample the weight of its class; None if there are no such weights."""
        if self.class_weight is None:
            return None
        with ranks.together(call):
            if call == "partial_fit" and self.class_weight == "balanced":
                raise ValueError(
                    "class_weight 'balanced' is not supported for partial_fit: a part of a stream does not tell how "
                    "often classes occur; pass a dict"
                )
            given = self._class_weights()

        def factors(weights: np.ndarray) -> np.ndarray:
            if given is not None:
                return given[y]
            counts = ranks.sum(np.bincount(y, weights, minlength=len(self.classes_)))
            return (counts.sum() / (len(counts) * np.where(counts, counts, 1)))[y]

        return factors

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


def _union(labels: list[np.ndarray]) -> np.ndarray:
    """Return the labels of all ranks in ascending order."""
    if len({each.dtype.kind in "OUST" for each in labels}) > 1:
        raise TypeError("labels are text on some ranks and numbers on others")
    classes = np.unique(np.concatenate(labels))
    if len(classes) < 2:
        raise ValueError(f"a classifier needs 2 classes, got one class: all samples are {classes[0]!s}")
    return classes
