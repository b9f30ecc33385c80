"""Networks that predict by NumPy alone, from the arrays of a model file; no MPI, Numba, SciPy or scikit-learn."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from sfb.models.saved.rows import Scaler, check_rows, product

__all__ = ["LinearPredictor", "ModelError", "PerceptronPredictor", "Predictor", "Scaler"]


class ModelError(ValueError):
    """A file is no model that this version can use, or a model cannot be written into one.

    >>> import sfb.models
    >>> sfb.models.load("/dev/null")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    sfb.models.saved.predictors.ModelError: /dev/null: is no model file, ...
    """


def _logistic(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=1, keepdims=True))
    x /= x.sum(axis=1, keepdims=True)
    return x


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "logistic": _logistic,
    "softmax": _softmax,
}


class Predictor(ABC):
    """A trained model.

    Args:
        settings: What the header of the file says of the model.
        arrays: The arrays of the file.

    Attributes:
        kind: The kind of model, as the file names it.
        settings: What the header of the file says of the model.
        n_features_in_: The number of features D.
        classes_: The K labels of a classifier; None of other models.
        scaler: What is done to features before they go into the model, or None.

    Raises:
        ModelError: Arrays are missing, or do not go together.
    """

    kind: ClassVar[str]

    def __init__(self, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.settings = settings
        self._arrays = arrays
        self.classes_: np.ndarray | None = arrays.get("classes")
        if self.classes_ is not None and self.classes_.ndim != 1:
            raise ModelError(f"classes must be an array of labels, got one of shape {self.classes_.shape}")
        self.n_features_in_ = self._open()
        self.scaler: Scaler | None = None
        if "scale_offset" in arrays or "scale_factor" in arrays:
            shape = (self.n_features_in_,)
            self.scaler = Scaler(self._array("scale_offset", shape), self._array("scale_factor", shape))

    def __repr__(self) -> str:
        classes = "" if self.classes_ is None else f", {len(self.classes_)} classes"
        return (
            f"{type(self).__name__}({self.settings.get('model', self.kind)}, {self.n_features_in_} features{classes})"
        )

    @abstractmethod
    def _open(self) -> int:
        """Take the arrays of this kind, checked, and return the number of features."""

    def _array(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return an array of numbers; None in a shape is any number ≥ 1."""
        array = self._arrays.get(name)
        if array is None:
            raise ModelError(f"is no complete model of kind {self.kind}: it lacks the array {name}")
        fits = array.ndim == len(shape) and all(
            have >= 1 if want is None else have == want for have, want in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype not in (np.float32, np.float64):
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            raise ModelError(f"{name} must be float32 or float64 of shape ({wanted}), got {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise ModelError(f"{name} holds NaN or infinity")
        return array

    def _number(self, name: str) -> float:
        """Return a number ≥ 0 that the header must have."""
        value = self.settings.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= sys.float_info.max:
            raise ModelError(f"{name} must be a number ≥ 0, got {value!r}")
        return float(value)

    def _setting(self, name: str, choices: tuple[str, ...]) -> str:
        """Return a name that the header must have."""
        value = self.settings.get(name)
        if value not in choices:
            raise ModelError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return str(value)

    def _outputs_are_classes(self, outputs: int) -> None:
        """Raise ModelError unless there is one output for each class, or a single one for two."""
        if self.classes_ is None:
            return
        needed = 2 if outputs == 1 else outputs
        if self.classes_.shape != (needed,) or needed < 2:
            raise ModelError(f"classes must hold {needed} labels for {outputs} outputs, got {self.classes_.shape}")

    def _product(self, X: Any, columns: np.ndarray) -> np.ndarray:
        """Return scaled features times D×K, N×K, in the type of the model or a wider one."""
        return product(check_rows(X, self.n_features_in_), columns, self.scaler)


class _Scores(Predictor):
    """A predictor by scores of classes, or of targets where there are no classes."""

    @abstractmethod
    def _scores(self, X: Any) -> np.ndarray:
        """Return the scores, N×K, or N×1 for two classes."""

    @property
    def _link(self) -> str:
        """How scores become probabilities: logistic, softmax, or identity for not at all."""
        return "identity"

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of samples.

        Args:
            X: N×D features, an array or a CSR matrix.

        Returns:
            N×K scores, or N for one output.
        """
        scores = self._scores(X)
        return scores.ravel() if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels of samples, N, or their targets, N or N×M.

        Args:
            X: N×D features, an array or a CSR matrix.
        """
        scores = self._scores(X)
        if self.classes_ is None:
            return scores.ravel() if scores.shape[1] == 1 and not self.settings.get("matrix", False) else scores
        return self.classes_[(scores[:, 0] > 0).astype(np.intp) if scores.shape[1] == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, N×K.

        Args:
            X: N×D features, an array or a CSR matrix.

        Raises:
            ModelError: The model has no probabilities.
        """
        if self.classes_ is None or self._link == "identity":
            raise ModelError(f"{self!r} has no probabilities")
        scores = self._scores(X)
        if scores.shape[1] == 1:
            return np.hstack([_logistic(-scores), _logistic(scores)])
        return _softmax(scores)


class LinearPredictor(_Scores):
    """Linear scores: coef K×D and intercept K; one row for two classes."""

    kind = "linear"

    def _open(self) -> int:
        self.coef_ = self._array("coef", (None, None))
        self.intercept_ = self._array("intercept", (len(self.coef_),))
        self._outputs_are_classes(len(self.coef_))
        self._setting("out_activation", ("identity", "logistic", "softmax"))
        return self.coef_.shape[1]

    @property
    def _link(self) -> str:
        return str(self.settings["out_activation"])

    def _scores(self, X: Any) -> np.ndarray:
        return self._product(X, self.coef_.T) + self.intercept_


class PerceptronPredictor(_Scores):
    """Layers: weights0, weights1, … K×D each and bias0, bias1, … K, an activation between them."""

    kind = "mlp"

    def _open(self) -> int:
        self._activation = _ACTIVATIONS[self._setting("activation", ("identity", "relu", "tanh", "logistic"))]
        self._setting("out_activation", ("identity", "logistic", "softmax"))
        self.weights, self.biases = [], []
        inputs: int | None = None
        for i in range(sum(name.startswith("weights") for name in self._arrays)):
            weight = self._array(f"weights{i}", (None, inputs))
            self.weights.append(weight)
            self.biases.append(self._array(f"bias{i}", (len(weight),)))
            inputs = len(weight)
        if inputs is None:
            raise ModelError("is no complete model of kind mlp: it lacks the array weights0")
        self._outputs_are_classes(inputs)
        return self.weights[0].shape[1]

    @property
    def _link(self) -> str:
        return str(self.settings["out_activation"])

    def _scores(self, X: Any) -> np.ndarray:
        found = self._product(X, self.weights[0].T) + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            found = self._activation(found) @ weight.T + bias
        return found
