"""Losses, and their derivatives by the scores."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit

__all__ = ["cross_entropy"]


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-entropy of each sample, and its derivative by the scores.

    Args:
        scores: N×K, which may be overwritten; N×1 for two classes, of which it is the score of the second.
        labels: N indices of classes.

    Returns:
        N losses, and N×K derivatives of the type of ``scores``.
    """
    if scores.shape[1] == 1:
        second = labels == 1
        z = scores[:, 0]
        return -log_expit(np.where(second, z, -z)), expit(scores) - second[:, np.newaxis].astype(scores.dtype)
    scores -= scores.max(axis=1, keepdims=True)
    picked = np.arange(len(labels)), labels
    chosen = scores[picked]
    error = np.exp(scores, out=scores)
    sums = error.sum(axis=1)
    error /= sums[:, np.newaxis]
    error[picked] -= 1
    return np.log(sums) - chosen, error
