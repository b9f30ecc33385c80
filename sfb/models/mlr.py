"""Multiclass logistic regression."""

from __future__ import annotations

import numpy as np

from sfb.models.network import Allocate, Network

__all__ = ["mlr"]


def mlr(features: int, classes: int, allocate: Allocate = np.zeros, *, seed: int = 0) -> Network:
    """Return a softmax over linear scores with zero weights; factors of a sample (a, b): softmax(Wa) − onehot(b), a."""
    return Network([features, classes], allocate, scale=0.0, seed=seed)
