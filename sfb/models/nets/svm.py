"""Linear support vector machine."""

from __future__ import annotations

from sfb.models.nets.network import Network

__all__ = ["svm"]


def svm(features: int, outputs: int, *, seed: int = 0) -> Network:
    """Return linear scores with zero weights under the hinge loss of Crammer and Singer, trained by subgradients.

    Factors of a sample (a, b) whose margin is below 1: onehot(strongest rival of b) − onehot(b), a; zero otherwise.

    Args:
        features: The number of features.
        outputs: The number of classes.
        seed: Taken as by `mlp`; the weights do not depend on it.

    >>> from sfb.models import svm
    >>> svm(64, 10).loss
    'hinge'
    """
    return Network([features, outputs], loss="hinge", scale=0.0, seed=seed)
