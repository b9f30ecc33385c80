"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from sfb.models.nets.network import Network

__all__ = ["mlp"]


def mlp(
    features: int,
    outputs: int,
    *,
    hidden: Sequence[int] = (4096, 4096),
    activation: str = "relu",
    regression: bool = False,
    seed: int = 0,
) -> Network:
    """Return a network of hidden layers for classes, or for targets that are numbers.

    He's initialisation (ICCV 2015, section 2.2) for "relu", Glorot's otherwise, whose variance is half of it where
    layers are equally wide.

    Args:
        features: The number of features.
        outputs: The number of classes, or of targets.
        hidden: Units of each hidden layer.
        activation: "identity", "relu", "tanh" or "logistic".
        regression: Whether targets are numbers.
        seed: Seed of the initial weights.

    >>> from sfb.models import mlp
    >>> [parameter.array.shape for parameter in mlp(784, 10, hidden=[32]).parameters]
    [(32, 784), (1, 32), (10, 32), (1, 10)]
    """
    loss = "squared" if regression else "cross-entropy"
    scale = 2.0 if activation == "relu" else 1.0
    return Network([features, *hidden, outputs], activation=activation, loss=loss, scale=scale, seed=seed)
