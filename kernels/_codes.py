"""Sparse codes by coordinate descent, and the atoms of a dictionary, one after another.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import math

import numpy as np
from numba import types

from sfb.kernels._blocks import matrix, signatures
from sfb.kernels._compile import inner, kernel

__all__ = ["atoms", "lasso"]

_I, _F, _BOOL = types.int64, types.float64, types.boolean


def _vector(t):
    return types.Array(t, 1, "C", readonly=True)


@inner
def _gap(code, products, slopes, square, alpha, positive):
    """Return the duality gap of a code: of ½‖x − Aᵀc‖² + α‖c‖₁ for ``slopes`` A(x − Aᵀc) and ``square`` ‖x‖²."""
    steepest, size, fit, rest = 0.0, 0.0, 0.0, 0.0
    for k in range(code.size):
        slope, c = np.float64(slopes[k]), np.float64(code[k])
        steepest = max(steepest, slope if positive else abs(slope))
        size += abs(c)
        fit += products[k] * c
        rest += slope * c
    along = square - fit  # x·(x − Aᵀc)
    residual = along - rest  # ‖x − Aᵀc‖²
    scale = alpha / steepest if steepest > alpha else 1.0  # to a feasible point of the dual
    return 0.5 * residual * (1 + scale * scale) + alpha * size - scale * along


def _lasso(t):
    return _I(*[matrix(t, readonly=True)] * 2, _vector(t), matrix(t), _F, _BOOL, _F, _I, _I, _I)


@kernel(signatures(_lasso))
def lasso(gram, products, squares, codes, alpha, positive, tol, most, start, stop):
    """Minimise ½‖x − Aᵀc‖² + α‖c‖₁ by c for samples ``start`` to ``stop``, by cyclic coordinate descent.

    With r = A(x − Aᵀc), a coordinate becomes c_k ← soft(r_k + G_kk·c_k, α)/G_kk, G = AAᵀ (Friedman, Hastie and
    Tibshirani, "Regularization Paths for Generalized Linear Models via Coordinate Descent", J. Stat. Softw. 33(1),
    2010, section 2). A sample is done when its duality gap is at most tol·‖x‖², or when nothing changes any more.

    Args:
        gram: G, K×K for K atoms.
        products: Ax of each sample, N×K.
        squares: ‖x‖² of each sample.
        codes: N×K, where the descent starts, and what it finds.
        alpha: α.
        positive: Whether codes must not be negative.
        tol: Gap at which a sample is done, relative to ‖x‖².
        most: Most sweeps over the coordinates.
        start: First sample.
        stop: End of the samples.

    Returns:
        The number of samples that were not done after ``most`` sweeps.
    """
    atoms = gram.shape[0]
    slopes = np.empty(atoms, codes.dtype)
    narrow = np.empty(2, codes.dtype)  # rounds to the type of the elements
    least = 4 * np.finfo(codes.dtype).eps
    undone = 0
    for i in range(start, stop):
        code, given = codes[i], products[i]
        for j in range(atoms):
            slopes[j] = given[j]
        for k in range(atoms):
            c, row = code[k], gram[k]
            if c != 0:
                for j in range(atoms):
                    slopes[j] -= c * row[j]
        done = False
        for _ in range(most):
            change, largest = 0.0, 0.0
            for k in range(atoms):
                row = gram[k]
                length, old = np.float64(row[k]), np.float64(code[k])
                z = slopes[k] + length * old
                new = 0.0
                if length > 0:
                    if z > alpha:
                        new = (z - alpha) / length
                    elif z < -alpha and not positive:
                        new = (z + alpha) / length
                narrow[0] = new
                new = narrow[0]
                if new != old:
                    narrow[1] = new - old
                    step = narrow[1]
                    for j in range(atoms):
                        slopes[j] -= step * row[j]
                    code[k] = narrow[0]
                    change = max(change, abs(new - old))
                largest = max(largest, abs(new))
            if change <= least * largest or _gap(code, given, slopes, squares[i], alpha, positive) <= tol * squares[i]:
                done = True
                break
        undone += not done
    return undone


@kernel(signatures(lambda t: types.void(matrix(t, readonly=True), matrix(t), _BOOL, _F)))
def atoms(sums, dictionary, positive, least):
    """Let each atom minimise ½‖X − CA‖² in turn, and project it onto the unit ball.

    a_k ← a_k + (B_k − M_k·A)/M_kk, M = CᵀC, B = CᵀX; then a_k/max(1, ‖a_k‖) (Mairal, Bach, Ponce and Sapiro, "Online
    Learning for Matrix Factorization and Sparse Coding", JMLR 11, 2010, algorithm 2). Every element is one chain of
    operations, the same on all processors.

    Args:
        sums: B and M side by side, K×(D+K).
        dictionary: A, K×D.
        positive: Whether atoms must not be negative.
        least: M_kk up to which an atom counts as unused, and is only projected.
    """
    count, features = dictionary.shape
    step = np.empty(features, dictionary.dtype)
    for k in range(count):
        atom, line = dictionary[k], sums[k]
        use = line[features + k]
        if use > least:
            for c in range(features):
                step[c] = line[c]
            for j in range(count):
                weight, other = line[features + j], dictionary[j]
                if weight != 0:
                    for c in range(features):
                        step[c] -= weight * other[c]
            for c in range(features):
                atom[c] += step[c] / use
        square = 0.0
        for c in range(features):
            if positive and atom[c] < 0:
                atom[c] = 0
            square += np.float64(atom[c]) * np.float64(atom[c])
        if square > 1:
            narrowed = np.float64(1) / math.sqrt(square)
            for c in range(features):
                atom[c] *= narrowed
