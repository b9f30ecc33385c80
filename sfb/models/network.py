"""Fully connected networks whose gradients are sufficient factors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfb import Factors

__all__ = ["Allocate", "Layer", "Network"]

Allocate = Callable[[tuple[int, int], Any], np.ndarray]


@dataclass
class Layer:
    """A dense layer, x ↦ x Wᵀ + b.

    Attributes:
        name: Name in reports.
        weights: K×D weights for K outputs and D inputs, float32.
        bias: K biases, float32.
    """

    name: str
    weights: np.ndarray
    bias: np.ndarray

    def initial(self, scale: float, rng: np.random.Generator) -> np.ndarray:
        """Return weights with variance scale/D."""
        weights = rng.standard_normal(self.weights.shape, dtype=np.float32)
        weights *= np.float32(np.sqrt(scale / self.weights.shape[1]))
        return weights


class Network:
    """Dense layers with ReLU between them and a softmax after the last.

    Args:
        sizes: Features, hidden units of each layer, classes.
        allocate: Returns a zeroed array of a shape and dtype: `numpy.zeros`, or `Comm.shared` for one
            copy of the weights per node.
        scale: Variance of the initial weights times the inputs of a layer.
        seed: Seed of the initial weights.

    Raises:
        ValueError: A size is below 1.
    """

    def __init__(self, sizes: Sequence[int], allocate: Allocate, *, scale: float, seed: int) -> None:
        if min(sizes) < 1:
            raise ValueError(f"every layer must have at least one unit, got {list(sizes)}")
        self.layers = [
            Layer(f"layer{i}", allocate((k, d), np.float32), np.zeros(k, np.float32))
            for i, (d, k) in enumerate(itertools.pairwise(sizes), 1)
        ]
        self._scale = scale
        self._seed = seed

    def initialise(self) -> None:
        """Draw the weights; one of the ranks that share them calls this."""
        rng = np.random.default_rng(self._seed)
        for layer in self.layers:
            layer.weights[:] = layer.initial(self._scale, rng)

    def forward(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the input of each layer, S×D, and the scores, S×classes."""
        activations = [x]
        for layer in self.layers:
            x = x @ layer.weights.T
            x += layer.bias
            if layer is not self.layers[-1]:
                np.maximum(x, 0, out=x)
            activations.append(x)
        return activations

    def backward(self, activations: list[np.ndarray], error: np.ndarray) -> Iterator[tuple[Layer, Factors]]:
        """Yield each layer, from the last to the first, with the factors of its gradient.

        The caller may change a layer's weights as soon as it has the layer.

        Args:
            activations: Result of `forward`.
            error: Derivative of the loss by the scores, S×classes.
        """
        for i in range(len(self.layers) - 1, -1, -1):
            layer, inputs = self.layers[i], activations[i]
            factors = Factors(error, inputs)
            if i > 0:
                error = error @ layer.weights
                error *= inputs > 0
            yield layer, factors

    @staticmethod
    def loss(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the summed cross-entropy of S samples, and its derivative softmax − onehot, S×classes."""
        shifted = scores - scores.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        sums = exponentials.sum(axis=1, keepdims=True)
        picked = (np.arange(len(labels)), labels)
        total = float(np.sum(np.log(sums[:, 0]) - shifted[picked], dtype=np.float64))
        error = exponentials / sums
        error[picked] -= 1
        return total, error

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the most likely class of each sample."""
        return np.argmax(self.forward(x)[-1], axis=1)
