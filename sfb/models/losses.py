"""Losses of samples, and their derivatives by the outputs of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["LOSSES", "Loss", "cross_entropy", "hinge", "squared"]

# Takes N×K outputs, which may be overwritten, and N targets; returns N losses, and N×K derivatives.
Loss = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-entropy of each sample, and its derivative by the scores.

    Args:
        scores: N×K, which may be overwritten; N×1 for two classes, of which it is the score of the second.
        labels: N indices of classes.

    Returns:
        N losses, and N×K derivatives of the type of ``scores``.
    """
    if scores.shape[1] == 1:
        from scipy.special import expit, log_expit  # model files are used where there is no SciPy

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


def hinge(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the multiclass hinge loss of each sample, and a subgradient.

    The loss is max(0, 1 + max over k ≠ y of s_k − s_y) (Crammer and Singer, "On the Algorithmic Implementation of
    Multiclass Kernel-based Vector Machines", JMLR 2001, section 3).

    Args:
        scores: N×K, which may be overwritten; K ≥ 2.
        labels: N indices of classes.

    Returns:
        N losses, and N×K subgradients of the type of ``scores``.
    """
    picked = np.arange(len(labels)), labels
    own = scores[picked]
    scores[picked] = -np.inf
    rivals = scores.argmax(axis=1)
    margins = 1 + scores[picked[0], rivals] - own
    active = margins > 0
    error = np.zeros_like(scores)
    error[picked[0][active], rivals[active]] = 1
    error[picked[0][active], labels[active]] = -1
    return np.where(active | np.isnan(margins), margins, 0), error


def squared(outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return half the squared error of each sample, summed over outputs, and its derivative by the outputs.

    Args:
        outputs: N×K, which may be overwritten.
        targets: N×K, or N for one output.
    """
    error = np.subtract(outputs, targets.reshape(outputs.shape), out=outputs)
    return 0.5 * np.einsum("ij,ij->i", error, error), error


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "hinge": hinge, "squared": squared}
