"""Kernels of coordinate descent against NumPy, for each form and type of columns."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse

from sfb.kernels import lasso

N, D = 37, 11


def constant(array):
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def columns(form, dtype, rng):
    """Return columns as the kernels take them, and as an array, centred."""
    x = np.where(rng.random((N, D)) < 0.4, rng.normal(1, 1, (N, D)), 0).astype(dtype)
    if form == "dense":
        x = (x - x.mean(axis=0)).astype(dtype)
        return lasso.Dense(constant(x.T)), x.astype(float)
    matrix, means = sparse.csc_array(x), x.astype(float).mean(axis=0)
    parts = matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64), means
    return lasso.Sparse(*map(constant, parts)), x - means


forms = pytest.mark.parametrize("form", ["dense", "sparse"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@forms
@dtypes
def test_products_and_norms(rng, form, dtype):
    given, x = columns(form, dtype, rng)
    y = rng.normal(size=N)
    y -= y.mean()
    found = np.empty(D)
    lasso.squares(given, N, found)
    np.testing.assert_allclose(found, (x**2).sum(axis=0), rtol=1e-6 if dtype == np.float32 else 1e-12)
    ids = rng.permutation(D)[:5]
    beta = rng.normal(size=5)
    beta[2] = 0
    r = np.append(y, 0.0)
    lasso.residual(given, ids, beta, r)
    expected = y - x[:, ids] @ beta
    np.testing.assert_allclose(r[:-1] - r[-1] / N, expected, atol=1e-6 if dtype == np.float32 else 1e-12)
    products = np.empty(5)
    lasso.correlate(given, ids, r, products)
    np.testing.assert_allclose(products, x[:, ids].T @ expected, atol=1e-5 if dtype == np.float32 else 1e-11)


@forms
@dtypes
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("l2", [0.0, 2.0])
def test_the_optimality_conditions(rng, form, dtype, positive, l2):
    given, x = columns(form, dtype, rng)
    y = 2 * x[:, 0] - x[:, 1] + rng.normal(size=N)
    y -= y.mean()
    l1 = 0.2 * np.abs(x.T @ y).max()
    ids, squares = np.arange(D), np.empty(D)
    lasso.squares(given, N, squares)
    beta, r = np.zeros(D), np.append(y, 0.0)
    epochs, objective, gap = lasso.descend(given, ids, squares, beta, r, l1, l2, positive, 10_000, 0.0, 1e-12)
    assert abs(gap) <= 1e-12 * objective
    assert epochs < 1000
    residual = y - x @ beta
    assert objective == pytest.approx(residual @ residual / 2 + l1 * np.abs(beta).sum() + l2 / 2 * beta @ beta)
    slope = x.T @ residual - l2 * beta
    used = beta != 0
    assert 0 < used.sum() < D
    np.testing.assert_allclose(slope[used], l1 * np.sign(beta[used]), rtol=1e-4)
    assert (slope if positive else np.abs(slope)).max() <= l1 * (1 + 1e-4)
    assert (beta >= 0).all() or not positive


def test_a_column_without_a_norm_is_left_alone(rng):
    given, x = columns("dense", np.float64, rng)
    squares = (x**2).sum(axis=0)
    squares[3] = 0
    beta, r = np.zeros(D), np.append(x[:, 3], 0.0)
    lasso.descend(given, np.arange(D), squares, beta, r, 1e-3, 0.0, False, 50, 0.0, 0.0)
    assert beta[3] == 0


@forms
def test_no_passes_measure_the_gap(rng, form):
    given, x = columns(form, np.float64, rng)
    y = x.sum(axis=1)
    l1, r = 1.0, np.append(y, 0.0)
    done, objective, gap = lasso.descend(given, np.arange(D), np.ones(D), np.zeros(D), r, l1, 0.0, False, 0, 0.0, 0.0)
    assert done == 0
    assert objective == pytest.approx(y @ y / 2)
    s = min(1, l1 / np.abs(x.T @ y).max())
    assert gap == pytest.approx(y @ y / 2 - (s * y @ y - s * s * y @ y / 2))
    np.testing.assert_array_equal(r[:-1], y)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 100])
def test_the_order_of_an_inner_product(rng, length):
    """Sixteen sums of fused multiply-adds, and then halves on halves: the bits are the same on every processor."""
    x, y = rng.normal(size=(2, length))
    sums = [0.0] * 16
    for i in range(length):
        sums[i % 16] = float(Fraction(sums[i % 16]) + Fraction(x[i]) * Fraction(y[i]))
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [sums[k] + sums[k + half] for k in range(half)]
    found = np.empty(1)
    lasso.correlate(lasso.Dense(constant(x[None])), np.zeros(1, np.int64), np.append(y, np.nan), found)
    assert found[0] == sums[0]
