"""Sparse codes, and the dictionary step, against scikit-learn and textbook formulas."""

import numpy as np
import pytest

from sfb import kernels


def problem(rng, dtype, atoms=30, features=20, samples=40):
    a = rng.standard_normal((atoms, features))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    return a.astype(dtype), (3 * rng.standard_normal((samples, features))).astype(dtype)


def arguments(a, x):
    return np.ascontiguousarray(a @ a.T), np.ascontiguousarray(x @ a.T), np.einsum("ij,ij->i", x, x)


def objectives(a, x, codes, alpha):
    a, x, codes = (array.astype(np.float64) for array in (a, x, codes))
    return 0.5 * ((x - codes @ a) ** 2).sum(axis=1) + alpha * abs(codes).sum(axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("alpha", [0.05, 0.8])
def test_codes_of_scikit_learn(rng, dtype, positive, alpha):
    decomposition = pytest.importorskip("sklearn.decomposition")
    a, x = problem(rng, dtype)
    codes = np.zeros((len(x), len(a)), dtype)
    tol = 1e-9 if dtype == np.float64 else 1e-6
    assert kernels.sparse_codes(*arguments(a, x), codes, alpha, positive=positive, tol=tol, max_iter=10**5) == 0
    expected = decomposition.sparse_encode(
        x.astype(np.float64), a.astype(np.float64), algorithm="lasso_cd", alpha=alpha, positive=positive, max_iter=10**5
    )
    gaps = objectives(a, x, codes, alpha) - objectives(a, x, expected, alpha)
    assert (gaps <= 2 * tol * (x**2).sum(axis=1)).all()
    assert (codes != 0).sum() < (0.6 if positive else 0.9) * codes.size
    if positive:
        assert (codes >= 0).all()


def test_the_gap_bounds_the_distance_from_the_optimum(rng):
    a, x = problem(rng, np.float64)
    exact, rough = (np.zeros((len(x), len(a))) for _ in range(2))
    kernels.sparse_codes(*arguments(a, x), exact, 0.3, tol=1e-14, max_iter=10**5)
    kernels.sparse_codes(*arguments(a, x), rough, 0.3, tol=1e-3)
    excess = objectives(a, x, rough, 0.3) - objectives(a, x, exact, 0.3)
    assert (excess <= 1e-3 * (x**2).sum(axis=1)).all()
    assert excess.max() > 1e-9  # it stopped early


def test_where_the_descent_starts_and_ends(rng):
    a, x = problem(rng, np.float64)
    cold = np.zeros((len(x), len(a)))
    assert kernels.sparse_codes(*arguments(a, x), cold, 0.3, tol=1e-12, max_iter=1) > 0
    assert kernels.sparse_codes(*arguments(a, x), cold, 0.3, tol=1e-12, max_iter=10**5) == 0
    warm = cold.copy()
    assert kernels.sparse_codes(*arguments(a, x), warm, 0.3, tol=1e-9, max_iter=1) == 0
    np.testing.assert_allclose(warm, cold, atol=1e-5)


def test_atoms_of_zeros_get_no_code(rng):
    a, x = problem(rng, np.float64)
    a[3] = 0
    codes = np.ones((len(x), len(a)))
    assert kernels.sparse_codes(*arguments(a, x), codes, 0.1, max_iter=10**5) == 0
    assert not codes[:, 3].any()


def test_threads_give_the_same_bits(rng):
    a, x = problem(rng, np.float32, atoms=60, samples=5000)
    one, three = (np.zeros((len(x), len(a)), np.float32) for _ in range(2))
    for codes, threads in ((one, 1), (three, 3)):
        kernels.sparse_codes(*arguments(a, x), codes, 3.0, tol=1e-4, threads=threads)
    assert one.tobytes() == three.tobytes()


def test_what_the_codes_must_be(rng):
    a, x = problem(rng, np.float64)
    gram, products, squares = arguments(a, x)
    codes = np.zeros((len(x), len(a)))
    with pytest.raises(ValueError, match="expected K×K"):
        kernels.sparse_codes(gram[:4, :4].copy(), products, squares, codes, 0.1)
    with pytest.raises(ValueError, match="must be ≥ 0"):
        kernels.sparse_codes(gram, products, squares, codes, -0.1)
    with pytest.raises(TypeError, match="like the result"):
        kernels.sparse_codes(gram.astype(np.float32), products, squares, codes, 0.1)
    with pytest.raises(TypeError, match="squares must be"):
        kernels.sparse_codes(gram, products, squares.astype(np.float32), codes, 0.1)


def textbook(dictionary, products, gram, positive):
    """Return the atoms after one pass over them, by the formula of Mairal et al."""
    atoms = dictionary.astype(np.float64)
    for k in range(len(atoms)):
        if gram[k, k] > 1e-6:
            atoms[k] += (products[k] - gram[k] @ atoms) / gram[k, k]
        if positive:
            atoms[k] = np.maximum(atoms[k], 0)
        atoms[k] /= max(1, np.linalg.norm(atoms[k]))
    return atoms


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("positive", [False, True])
def test_atoms(rng, dtype, positive):
    a, x = problem(rng, dtype)
    codes = np.where(rng.random((len(x), len(a))) < 0.3, rng.standard_normal((len(x), len(a))), 0).astype(dtype)
    codes[:, 7] = 0  # an atom that nobody uses
    sums = np.ascontiguousarray(np.hstack([codes.T @ x, codes.T @ codes]))
    expected = textbook(a, sums[:, :20], sums[:, 20:], positive)
    found = a.copy()
    kernels.update_atoms(sums, found, positive=positive)
    np.testing.assert_allclose(found, expected, rtol=1e-4 if dtype == np.float32 else 1e-10, atol=1e-5)
    assert (np.linalg.norm(found, axis=1) <= 1 + 1e-6).all()
    with pytest.raises(ValueError, match=r"K×\(D\+K\)"):
        kernels.update_atoms(sums[:, 1:].copy(), found)
