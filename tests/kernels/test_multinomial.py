"""Coordinate ascent for the multinomial logistic loss."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.special import logsumexp, xlogy

from sfb.kernels.stages import compiled


def problem(rng, dtype, classes=4, scale=1.0):
    x = sparse.csr_array(rng.standard_normal((12, 6)) * (rng.random((12, 6)) < 0.6) * scale, dtype=dtype)
    y = rng.integers(0, classes, 12)
    costs = rng.uniform(0.2, 2, 12).astype(dtype)
    offsets = rng.standard_normal(classes).astype(dtype)
    return x, y, costs, offsets


def start(x, y, classes):
    p = np.eye(classes, dtype=x.dtype)[y]
    return p, np.zeros((x.shape[1], classes), x.dtype)


def step(x, costs, offsets, p, w, order, factor=1.0):
    change = np.empty((len(order), p.shape[1]), x.dtype)
    squares = np.asarray(x.multiply(x).sum(axis=1), x.dtype).ravel()
    rows = x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)
    compiled("multinomial").multinomial_entropy(*rows, costs, squares, offsets, p, w, order, factor, change)
    return change


def dual(x, y, costs, offsets, p):
    w = x.T @ (costs[:, None] * (np.eye(p.shape[1])[y] - p))
    terms = xlogy(p, p).sum(axis=1) - p @ offsets + offsets[y]
    return -0.5 * (w**2).sum() - costs @ terms


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 4, 30])
def test_a_step_takes_the_best_distribution(rng, classes, scale):
    """No distribution near the result, nor any of many others, has a higher dual."""
    x, y, costs, offsets = problem(rng, np.float64, classes, scale)
    p, w = start(x, y, classes)
    for i in (3, 7):
        step(x, costs, offsets, p, w, np.array([i]))
        assert p[i].sum() == pytest.approx(1, abs=1e-12)
        assert p[i].min() >= 0
        best = dual(x, y, costs, offsets, p)
        for other in rng.dirichlet(np.ones(classes), 50):
            for part in (1, 0.1, 1e-3):
                q = p.copy()
                q[i] = (1 - part) * p[i] + part * other
                assert dual(x, y, costs, offsets, q) <= best + 1e-12 * max(1, abs(best))
    np.testing.assert_allclose(w, x.T @ (costs[:, None] * (np.eye(classes)[y] - p)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_passes_close_the_gap(rng, dtype):
    x, y, costs, offsets = problem(rng, dtype)
    p, w = start(x, y, 4)
    for _ in range(60):
        step(x, costs, offsets, p, w, rng.permutation(12).astype(np.int64))
    scores = x @ w + offsets
    primal = 0.5 * (w**2).sum() + costs @ (logsumexp(scores, axis=1) - scores[np.arange(12), y])
    assert primal - dual(x, y, costs, offsets, p.astype(np.float64)) < (1e-5 if dtype == np.float32 else 1e-10) * primal


def test_changes_and_samples_without_features(rng):
    x, y, costs, offsets = problem(rng, np.float64)
    x = sparse.csr_array(sparse.diags_array((np.arange(12) != 5).astype(float)) @ x)
    p, w = start(x, y, 4)
    order = np.array([5, 2, 9])
    change = step(x, costs, offsets, p, w, order, factor=3.0)
    np.testing.assert_allclose(change, costs[order, None] * (np.eye(4)[y[order]] - p[order]), atol=1e-14)
    np.testing.assert_allclose(w, 3 * x[order].T @ change, atol=1e-13)
    np.testing.assert_allclose(p[5], np.exp(offsets) / np.exp(offsets).sum(), rtol=1e-12)
