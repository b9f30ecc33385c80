"""Multiclass logistic regression."""

from __future__ import annotations

from sfb.models.nets.network import Network

__all__ = ["mlr"]


def mlr(features: int, outputs: int, *, seed: int = 0) -> Network:
    """Return a softmax over linear scores with zero weights; factors of a sample (a, b): softmax(Wa) − onehot(b), a.

    Args:
        features: The number of features.
        outputs: The number of classes.
        seed: Taken as by `mlp`; the weights do not depend on it.

    >>> from sfb.models import mlr
    >>> mlr(64, 10).parameters[0].array.shape
    (10, 64)
    """
    return Network([features, outputs], scale=0.0, seed=seed)
