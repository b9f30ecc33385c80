"""Norms and inner products of factors whose squares may leave the range of their type; no Numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["balanced", "inner", "norm_from", "shifted", "squares_fit"]

# Squares of rows from this to its inverse keep their precision, and so do their products in float64.
_LEAST = {4: 2.0**-100, 8: 2.0**-480}


def squares_fit(a: np.ndarray, squares: np.ndarray) -> bool:
    """Return whether the squares of the rows of a, as they were computed, neither overflow nor underflow."""
    least = _LEAST[a.itemsize]
    odd = np.flatnonzero(~((squares >= least) & (squares <= 1 / least)))
    return not a[odd].any()  # NaN counts, rows of zeros do not


@np.errstate(invalid="ignore")
def balanced(u: np.ndarray, v: Any) -> tuple[np.ndarray, Any, np.ndarray, int]:
    """Return u and v with each row scaled by a power of two, weights of the samples, and a power of two.

    v may be CSR. The largest element of a row is in [½, 1) then, and uᵀv is 2ᵉ·Σ weightₛ·uₛvₛᵀ for the last result e.
    Samples with a factor of zeros are left out.
    """
    peaks = [_peaks(factor) for factor in (u, v)]
    rows = (peaks[0] * 0 != peaks[1]) & (peaks[1] * 0 != peaks[0])  # those that add anything; NaN equals nothing
    if not isinstance(v, np.ndarray):
        rows &= np.diff(v.indptr) > 0
    shifts = [np.frexp(peak[rows])[1] for peak in peaks]
    u, v = (_shifted_rows(factor[rows], -shift) for factor, shift in zip((u, v), shifts, strict=True))
    exponents = shifts[0] + shifts[1]
    top = int(exponents.max()) if exponents.size else 0
    return u, v, np.ldexp(1.0, exponents - top), top


def _peaks(factor: Any) -> np.ndarray:
    """Return the largest magnitude of each row, NaN if the row holds one."""
    if isinstance(factor, np.ndarray):
        return np.abs(factor).max(axis=1, initial=0)
    lengths = np.diff(factor.indptr)
    result = np.zeros(len(lengths), factor.data.dtype)
    np.maximum.at(result, np.repeat(np.arange(len(lengths)), lengths), np.abs(factor.data[: factor.indptr[-1]]))
    return result


def _shifted_rows(factor: Any, exponents: np.ndarray) -> Any:
    """Return each row of a factor times 2ᵉ; of CSR in float64, in which SciPy multiplies without losses."""
    if isinstance(factor, np.ndarray):
        return np.ldexp(factor, exponents[:, None])
    factor = factor.astype(np.float64)
    factor.data = np.ldexp(factor.data, np.repeat(exponents, np.diff(factor.indptr)))
    return factor


@np.errstate(invalid="ignore")
def inner(u: np.ndarray, v: Any, x: np.ndarray, y: Any) -> tuple[float, int]:
    """Return the inner product ⟨uᵀv, xᵀy⟩ = t·2ᵉ as t and e; t is NaN or infinite if a factor is not finite."""
    u, v, first, exponent = balanced(u, v)
    x, y, second, other = balanced(x, y)
    overlaps = v @ y.T
    if not isinstance(overlaps, np.ndarray):
        overlaps = overlaps.toarray()
    products = (u @ x.T).astype(np.float64) * overlaps
    return float(first @ products @ second), exponent + other


def norm_from(square: float, exponent: int = 0) -> float:
    """Return 2ᵉ·√square for an exponent e, NaN for NaN and 0 where rounding has made the square negative."""
    return shifted(0.0 if square < 0 else math.sqrt(square), exponent)


def shifted(value: float, exponent: int) -> float:
    """Return 2ᵉ·value, infinite beyond the range of float64."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(value, exponent))
