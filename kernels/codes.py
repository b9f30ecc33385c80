"""Sparse codes of samples, and the dictionary step, for models."""

from __future__ import annotations

import numpy as np

from sfb.kernels._arguments import check_arrays
from sfb.kernels._threads import share
from sfb.kernels.stages import compiled

__all__ = ["sparse_codes", "update_atoms"]


def sparse_codes(
    gram: np.ndarray,
    products: np.ndarray,
    squares: np.ndarray,
    codes: np.ndarray,
    alpha: float,
    *,
    positive: bool = False,
    tol: float = 1e-6,
    max_iter: int = 1000,
    threads: int = 1,
) -> int:
    """Minimise ½‖x − Aᵀc‖² + alpha·‖c‖₁ for each of N samples x, by coordinate descent in the Gram matrix.

    Args:
        gram: AAᵀ for a dictionary A of K atoms, K×K, C-contiguous float32 or float64.
        products: Ax of each sample, N×K, C-contiguous, of the same type.
        squares: ‖x‖² of each sample, N, of the same type.
        codes: N×K, C-contiguous and writeable, of the same type: the codes to start from, then those found.
        alpha: Weight of the penalty, ≥ 0.
        positive: Whether codes must not be negative.
        tol: Duality gap at which a sample is done, relative to ‖x‖².
        max_iter: Most sweeps over the coordinates of a sample.
        threads: The most threads that share the samples.

    Returns:
        The number of samples that were not done after ``max_iter`` sweeps.

    Raises:
        ValueError: Shapes that do not fit, or a negative number.
        TypeError: Dtypes, orders or read-only arrays that the kernels do not take.

    >>> import numpy as np
    >>> from sfb.kernels import sparse_codes
    >>> codes = np.zeros((1, 2))
    >>> sparse_codes(np.eye(2), np.array([[3.0, 0.5]]), np.array([9.25]), codes, 1.0)
    0
    >>> codes
    array([[2., 0.]])
    """
    check_arrays(codes, gram=gram, products=products)
    atoms = codes.shape[1]
    if gram.shape != (atoms, atoms) or products.shape != codes.shape or squares.shape != (len(codes),):
        raise ValueError(
            f"expected K×K, N×K, N and N×K, got {gram.shape}, {products.shape}, {squares.shape} and {codes.shape}"
        )
    if squares.dtype != codes.dtype or not squares.flags.c_contiguous:
        raise TypeError(f"squares must be C-contiguous {codes.dtype} like the codes, got {squares.dtype}")
    if not (alpha >= 0 and tol >= 0 and max_iter >= 0):
        raise ValueError(f"alpha, tol and max_iter must be ≥ 0, got {alpha!r}, {tol!r} and {max_iter!r}")
    kernel, undone = compiled("_codes").lasso, []

    def work(start: int, stop: int) -> None:
        undone.append(kernel(gram, products, squares, codes, alpha, positive, tol, max_iter, start, stop))

    share(work, 0, len(codes), 16 * atoms, threads)
    return sum(undone)


def update_atoms(sums: np.ndarray, dictionary: np.ndarray, *, positive: bool = False, least: float = 1e-6) -> None:
    """Let each atom of a dictionary in turn minimise ½‖X − CA‖², and project it onto the unit ball.

    Mairal, Bach, Ponce and Sapiro, "Online Learning for Matrix Factorization and Sparse Coding", JMLR 11, 2010,
    algorithm 2, with one pass over the atoms. The result has the same bits on all processors.

    Args:
        sums: CᵀX and CᵀC side by side, K×(D+K), C-contiguous float32 or float64.
        dictionary: A, K×D, C-contiguous and writeable, of the same type; updated in place.
        positive: Whether atoms must not be negative.
        least: An atom whose element of the diagonal of CᵀC is no larger counts as unused: it is only projected.

    Raises:
        ValueError: Shapes that do not fit.
        TypeError: Dtypes, orders or read-only arrays that the kernels do not take.

    >>> import numpy as np
    >>> from sfb.kernels import update_atoms
    >>> x, c = np.array([[3.0, 4.0]]), np.array([[1.0]])  # one sample, whose code is 1
    >>> dictionary = np.array([[1.0, 0.0]])
    >>> update_atoms(np.hstack([c.T @ x, c.T @ c]), dictionary)
    >>> dictionary
    array([[0.6, 0.8]])
    """
    check_arrays(dictionary, sums=sums)
    atoms, features = dictionary.shape
    if sums.shape != (atoms, features + atoms):
        raise ValueError(f"expected K×(D+K) and K×D, got {sums.shape} and {dictionary.shape}")
    compiled("_codes").atoms(sums, dictionary, positive, least)
