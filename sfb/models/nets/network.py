"""Fully connected networks whose gradients are sufficient factors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfb.factors import Factors
from sfb.models.losses import LOSSES
from sfb.models.model import Gradient, Model, Parameter

__all__ = ["ACTIVATIONS", "Layer", "Network", "activate"]

# Samples that are evaluated at a time.
_PART = 1024


def _logistic(x: np.ndarray) -> np.ndarray:
    from scipy.special import expit  # model files are used where there is no SciPy

    return expit(x, out=x)


# Each activation, in place, and its derivative, which takes the result of the activation.
_ACTIVATIONS: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = {
    "identity": (lambda x: x, lambda a: 1),
    "relu": (lambda x: np.maximum(x, 0, out=x), lambda a: a > 0),
    "tanh": (lambda x: np.tanh(x, out=x), lambda a: 1 - a * a),
    "logistic": (_logistic, lambda a: a * (1 - a)),
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activate(activation: str, x: np.ndarray) -> None:
    """Apply an activation, by its name, in place."""
    _ACTIVATIONS[activation][0](x)


@dataclass
class Layer:
    """A dense layer, x ↦ x Wᵀ + b.

    Attributes:
        weights: K×D weights for K outputs and D inputs.
        bias: 1×K biases, which do not decay.

    >>> import numpy as np
    >>> from sfb.models import Layer, Parameter
    >>> layer = Layer(Parameter("weights", np.ones((1, 2))), Parameter("bias", np.zeros((1, 1)), decays=False))
    >>> layer(np.array([[1.0, 2.0]]))
    array([[3.]])
    """

    weights: Parameter
    bias: Parameter

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the S×K outputs for S×D inputs."""
        outputs = x @ self.weights.array.T
        outputs += self.bias.array
        return outputs


class Network(Model):
    """Dense layers with an activation between them and a loss after the last.

    The gradient of a layer over S samples is UᵀV: U is the error at its output, V its input.

    Args:
        sizes: Features, hidden units of each layer, outputs.
        activation: "identity", "relu", "tanh" or "logistic", between layers.
        loss: "cross-entropy" of classes, one output for two of them or one for each; "hinge", that of Crammer and
            Singer, with one output for each class; or "squared", of targets that are numbers.
        dtype: float32 or float64, that of parameters and outputs.
        scale: Variance of the initial weights times the inputs of a layer.
        seed: Seed of the initial weights.

    Attributes:
        layers: The layers, from the first to the last.
        loss: The loss.
        sample_weights: N weights of the losses of the samples to learn from; None for 1 each.
        sparse: Whether sparse samples to learn from stay CSR, so that the first layer's factors have CSR v: on all
            ranks or on none.

    Raises:
        ValueError: A size is below 1, or there is no such activation or loss.

    >>> import numpy as np
    >>> from sfb.models import Network
    >>> network = Network([2, 3])
    >>> x, y, rows = np.ones((4, 2), np.float32), np.array([0, 1, 2, 0]), np.arange(4)[:, np.newaxis]
    >>> loss, gradients = network.gradients(x, y, rows, size=4)
    >>> [(parameter.name, gradient.shape) for parameter, gradient in gradients]
    [('layer1', (3, 2)), ('bias1', (1, 3))]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        loss: str = "cross-entropy",
        dtype: Any = np.float32,
        scale: float = 2.0,
        seed: int = 0,
    ) -> None:
        if min(sizes) < 1:
            raise ValueError(f"every layer must have at least one unit, got {list(sizes)}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self.activation, self.loss = activation, loss
        self.sample_weights: np.ndarray | None = None
        self.sparse = False
        self.measure = "mean squared error" if loss == "squared" else "accuracy"
        self.layers = [
            Layer(
                Parameter(f"layer{i}", np.zeros((k, d), dtype)), Parameter(f"bias{i}", np.zeros((1, k), dtype), False)
            )
            for i, (d, k) in enumerate(itertools.pairwise(sizes), 1)
        ]
        self.parameters = [parameter for layer in self.layers for parameter in (layer.weights, layer.bias)]
        self._scale = scale
        self._seed = seed

    def initialise(self, x: Any = None, y: Any = None) -> None:
        """Draw weights of variance scale/D for D inputs, and set biases to 0; see `Model.initialise`."""
        rng = np.random.default_rng(self._seed)
        for layer in self.layers:
            weights = layer.weights.array
            drawn = rng.standard_normal(weights.shape, dtype=weights.dtype)
            drawn *= weights.dtype.type(np.sqrt(self._scale / weights.shape[1]))
            weights[:] = drawn
            layer.bias.array[:] = 0

    def gradients(
        self, x: Any, y: np.ndarray, rows: np.ndarray, size: float
    ) -> tuple[float, Iterator[tuple[Parameter, Gradient]]]:
        """Return the loss of samples, and the gradient of each layer, the last first; see `Model.gradients`."""
        rows = rows[:, 0]
        inputs = self._forward(self._csr(x, rows) if self.sparse else self._dense(x, rows))
        losses, error = LOSSES[self.loss](inputs.pop(), y[rows])
        if self.sample_weights is not None:
            losses = losses * self.sample_weights[rows]
            error *= self.sample_weights[rows, np.newaxis]
        error /= size
        return float(losses.sum(dtype=np.float64)), self._backward(inputs, error)

    def objective(self, x: Any, y: np.ndarray, rows: np.ndarray) -> float:
        """Return the summed loss of samples; see `Model.objective`."""
        total = 0.0
        for part in _parts(rows[:, 0]):
            losses, _ = LOSSES[self.loss](self.outputs(x, part), y[part])
            total += float(losses.sum(dtype=np.float64))
        return total

    def score(
        self, x: Any, y: np.ndarray, references: Sequence[np.ndarray] = (), first: int = 0
    ) -> tuple[float, float]:
        """Return the samples whose class is right and all samples; or, of numbers, Σ error² and how many there are."""
        total = 0.0
        for part in _parts(np.arange(len(y))):
            if self.loss == "squared":
                errors = self.outputs(x, part) - y[part].reshape(len(part), -1)
                total += float(np.sum(np.square(errors, dtype=np.float64)))
            else:
                total += float(np.sum(self.predict(x, part) == y[part]))
        return total, float(y.size)

    def predict(self, x: Any, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the most likely class of samples, or their outputs if the model has learned numbers."""
        outputs = self.outputs(x, rows)
        if self.loss == "squared":
            return outputs
        return (outputs[:, 0] > 0).astype(np.intp) if outputs.shape[1] == 1 else outputs.argmax(axis=1)

    def outputs(self, x: Any, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the outputs of the last layer for samples, S×K."""
        return self._forward(self._csr(x, rows) if hasattr(x, "toarray") else self._dense(x, rows))[-1]

    def save(self) -> dict[str, Any]:
        """Return the contents of the model file: of one layer those of a linear model."""
        links = {"hinge": "identity", "squared": "identity"}
        outputs = self.layers[-1].bias.array.size
        contents: dict[str, Any] = {
            "kind": "mlp" if len(self.layers) > 1 else "linear",
            "out_activation": links.get(self.loss, "logistic" if outputs == 1 else "softmax"),
        }
        if len(self.layers) == 1:
            (layer,) = self.layers
            return contents | {"coef": layer.weights.array, "intercept": layer.bias.array[0]}
        contents["activation"] = self.activation
        for i, layer in enumerate(self.layers):
            contents |= {f"weights{i}": layer.weights.array, f"bias{i}": layer.bias.array[0]}
        return contents

    def _dense(self, x: Any, rows: np.ndarray | slice) -> np.ndarray:
        """Return samples as an array of the parameters' type."""
        chosen = x[rows]
        return np.ascontiguousarray(
            chosen.toarray() if hasattr(chosen, "toarray") else chosen, self.layers[0].weights.array.dtype
        )

    def _csr(self, x: Any, rows: np.ndarray | slice) -> Any:
        """Return samples as CSR of the parameters' type."""
        from scipy.sparse import csr_array

        return csr_array(x[rows], dtype=self.layers[0].weights.array.dtype)

    def _forward(self, x: Any) -> list[np.ndarray]:
        """Return the input of each layer, S×D, and the outputs of the last, S×K."""
        results = [x]
        for layer in self.layers:
            if len(results) > 1:
                activate(self.activation, x)
            x = layer(x)
            results.append(x)
        return results

    def _backward(self, inputs: list[np.ndarray], error: np.ndarray) -> Iterator[tuple[Parameter, Gradient]]:
        """Yield the parameters of each layer, from the last to the first, with their gradients.

        Args:
            inputs: The input of each layer.
            error: Derivative of the loss by the outputs, S×K.
        """
        derivative = _ACTIVATIONS[self.activation][1]
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            own = np.ascontiguousarray(error)
            if i > 0:  # before the caller changes the weights
                error = (error @ layer.weights.array) * derivative(inputs[i])
            yield layer.weights, Factors(own, inputs[i])
            yield layer.bias, own.sum(axis=0, keepdims=True)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield some rows at a time."""
    for start in range(0, len(rows), _PART):
        yield rows[start : start + _PART]
