"""Kernels of matrix factorization against NumPy."""

import numpy as np
import pytest

from sfb.kernels.stages import compiled

SEED = 11


@pytest.fixture(scope="module")
def kernels():
    return compiled("factorization")


class Problem:
    """A random sparse matrix by rows, one row of which is empty and one of which has many entries."""

    def __init__(self, dtype, factors, implicit):
        rng = np.random.default_rng(SEED)
        self.rows, self.columns, self.factors = 6, 1500, factors
        counts = np.array([3, 0, 1, 1200, 5, 8])
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.places = np.concatenate([np.sort(rng.choice(self.columns, n, replace=False)) for n in counts])
        self.values = (rng.integers(1, 6, counts.sum()) if implicit else rng.normal(size=counts.sum())).astype(dtype)
        self.features = rng.normal(size=(self.columns, factors)).astype(dtype)
        self.shifts = (np.zeros(self.columns) if implicit else rng.normal(size=self.columns)).astype(dtype)
        gram = self.features.T @ self.features
        self.base = np.ascontiguousarray(gram) if implicit else np.zeros((factors, factors), dtype)
        self.confidence = dtype(0.5 if implicit else 0)

    def arguments(self, strength, weighted):
        kind = self.values.dtype.type
        return (
            self.starts, self.places.astype(np.uint32), self.values, self.features, self.shifts, self.base,
            self.confidence, kind(strength), weighted,
        )  # fmt: skip

    def solution(self, strength, weighted):
        found = np.zeros((self.rows, self.factors))
        for row in range(self.rows):
            chosen = slice(self.starts[row], self.starts[row + 1])
            f, v = self.features[self.places[chosen]].astype(float), self.values[chosen].astype(float)
            if not len(v):
                continue
            weights = self.confidence * v if self.confidence else np.ones(len(v))
            targets = 1 + weights if self.confidence else v - self.shifts[self.places[chosen]]
            penalty = strength * (len(v) if weighted else 1)
            a = self.base + (f.T * weights) @ f + penalty * np.eye(self.factors)
            found[row] = np.linalg.solve(a, f.T @ targets)
        return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("factors", [1, 7, 20])
def test_least_squares(kernels, dtype, implicit, weighted, factors):
    problem = Problem(dtype, factors, implicit)
    expected = problem.solution(0.5, weighted)
    close = {"rtol": 2e-3, "atol": 2e-3} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-9}
    found = np.ones((problem.rows, factors), dtype)
    assert kernels.least_squares(*problem.arguments(0.5, weighted), found) == -1
    np.testing.assert_allclose(found, expected, **close)
    found[:] = 1
    kernels.conjugate_gradient(*problem.arguments(0.5, weighted), 60, found)
    np.testing.assert_allclose(found, expected, **close)


def test_equations_without_a_solution_are_named(kernels):
    problem = Problem(np.float64, 7, False)
    problem.features[:] = np.inf
    assert kernels.least_squares(*problem.arguments(0.5, True), np.ones((6, 7))) == 0


@pytest.mark.parametrize("implicit", [False, True])
def test_residuals(kernels, implicit):
    problem = Problem(np.float64, 5, implicit)
    x = np.random.default_rng(SEED).normal(size=(problem.rows, 5))
    rows = np.repeat(np.arange(problem.rows), np.diff(problem.starts))
    products = np.einsum("ij,ij->i", x[rows], problem.features[problem.places])
    errors = problem.values - 0.3 - products
    expected = (errors @ errors, 0)
    if implicit:
        weights = 1 + problem.confidence * problem.values
        expected = weights @ (1 - products) ** 2, products @ products
    arguments = problem.arguments(1, True)
    found = kernels.residuals(*arguments[:3], x, problem.features, 0.3, problem.confidence)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_in_the_order_that_is_left_behind(kernels, dtype, biased):
    rng = np.random.default_rng(SEED)
    entries, factors = 200, 6
    rows, columns = rng.integers(0, 9, entries).astype(np.uint32), rng.integers(0, 7, entries).astype(np.uint32)
    values = rng.normal(size=entries).astype(dtype)
    p, q = (rng.normal(size=(n, factors + biased)).astype(dtype) for n in (9, 7))
    of_rows, of_columns = rng.uniform(0, 0.2, 9).astype(dtype), rng.uniform(0, 0.2, 7).astype(dtype)
    x, y = p.astype(float), q.astype(float)
    order, state, total = np.arange(entries, dtype=np.uint32), np.array([SEED], np.uint64), 0.0
    for first, last in ((0, 150), (150, entries)):
        total += kernels.descend(
            rows, columns, values, order, p, q, dtype(0.2), dtype(0.05), of_rows, of_columns, biased, first, last, state
        )
    assert sorted(order) == list(range(entries))
    assert list(order) != list(range(entries))
    expected = 0.0
    for entry in order:
        u, i = rows[entry], columns[entry]
        a, b = x[u].copy(), y[i].copy()
        error = values[entry] - 0.2 - a[:factors] @ b[:factors] - (a[factors] + b[factors] if biased else 0)
        expected += error**2
        other_a, other_b = a.copy(), b.copy()
        if biased:
            other_a[factors] = other_b[factors] = 1
        x[u] += 0.05 * (error * other_b - of_rows[u] * a)
        y[i] += 0.05 * (error * other_a - of_columns[i] * b)
    close = {"rtol": 1e-3, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(total, expected, rtol=close["rtol"])
    np.testing.assert_allclose(p, x, **close)
    np.testing.assert_allclose(q, y, **close)
