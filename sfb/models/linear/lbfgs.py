"""Linear models by L-BFGS: every rank takes the same steps, and the ranks sum the loss and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import issparse

from sfb.models.estimator import Shard
from sfb.models.losses import cross_entropy
from sfb.models.ranks import Ranks

__all__ = ["fit"]

# Rows of dense samples that go through scores and gradient while they are in the cache.
_ROWS = 512

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


def fit(
    ranks: Ranks, shard: Shard, start: np.ndarray, *, intercept: bool, l1: float, l2: float, tol: float, max_iter: int
) -> tuple[np.ndarray, int]:
    """Minimise the mean cross-entropy plus l1·‖W‖₁ + l2/2·‖W‖²; collective.

    L-BFGS-B of SciPy (Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16(5), 1995). An L1 penalty splits each
    coefficient into its positive and its negative part, both with the bound 0.

    Args:
        ranks: The ranks.
        shard: The samples of this rank.
        start: Coefficients, K×D, or K×(D + 1) with intercepts in the last column; K is 1 for two classes.
        intercept: Whether there are intercepts, which no penalty counts.
        l1: Strength of the L1 penalty.
        l2: Strength of the L2 penalty.
        tol: Largest element of the projected gradient at which the solver stops.
        max_iter: Most iterations.

    Returns:
        The coefficients like ``start``, the same bits on all ranks, and the number of iterations.
    """
    loss = _mean_loss(ranks, shard, start.shape, intercept)
    penalised = np.ones_like(start)
    if intercept:
        penalised[:, -1] = 0
    penalised = penalised.ravel()

    def smooth(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(w)
        shrunk = penalised * w
        value += 0.5 * l2 * float(shrunk @ w)
        shrunk *= l2
        gradient += shrunk
        return value, gradient

    def split(parts: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = smooth(parts[: start.size] - parts[start.size :])
        return (
            value + l1 * float(penalised @ (parts[: start.size] + parts[start.size :])),
            np.concatenate([gradient + l1 * penalised, -gradient + l1 * penalised]),
        )

    w = start.ravel()
    problem: dict[str, Any] = {"fun": smooth, "x0": w}
    if l1:
        both = np.concatenate([np.maximum(w, 0), np.maximum(-w, 0)])
        problem = {"fun": split, "x0": both, "bounds": [(0, None)] * both.size}
    options = {"maxiter": max_iter, "gtol": tol, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    result = minimize(**problem, method="L-BFGS-B", jac=True, options=options)
    found = result.x[: start.size] - result.x[start.size :] if l1 else result.x
    return found.reshape(start.shape), int(result.nit)


def _mean_loss(ranks: Ranks, shard: Shard, shape: tuple[int, int], intercept: bool) -> Function:
    """Return a function that gives the mean loss of all ranks and its gradient."""
    sums = np.empty(1 + shape[0] * shape[1])
    features = shard.x.shape[1]
    dtype = shard.x.dtype

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        rows = w.reshape(shape).astype(dtype, copy=False)
        coef = rows[:, :features].T
        gradient = sums[1:].reshape(shape)
        sums[:] = 0
        for x, y, weights in _parts(shard):
            scores = np.asarray(x @ coef)
            if intercept:
                scores += rows[:, -1]
            losses, error = cross_entropy(scores, y)
            if weights is not None:
                error *= weights[:, np.newaxis]
                losses *= weights
            sums[0] += losses.sum(dtype=np.float64)
            gradient[:, :features] += (x.T @ error).T if issparse(x) else error.T @ x
            if intercept:
                gradient[:, -1] += error.sum(axis=0)
        total = ranks.sum(sums)
        total /= shard.total
        return float(total[0]), total[1:].copy()  # SciPy may keep it while the next is computed

    return loss


def _parts(shard: Shard) -> Iterator[tuple[Any, np.ndarray, np.ndarray | None]]:
    """Yield samples with their labels and weights, dense ones some rows at a time."""
    count = len(shard.y)
    step = max(1, count) if issparse(shard.x) else _ROWS
    for start in range(0, count, step):
        rows = slice(start, start + step)
        weights = None if shard.weights is None else shard.weights[rows]
        yield shard.x if step >= count else shard.x[rows], shard.y[rows], weights
