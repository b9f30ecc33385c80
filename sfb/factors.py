"""Sufficient factors of a matrix gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sfb.checks import check_matrix, is_matrix
from sfb.kernels.norms import inner, norm_from, shifted

__all__ = ["Factors"]


class Factors:
    """The K×D matrix uᵀv, kept as its sufficient factors and never formed.

    A gradient over S samples is G = Σ_s u_s v_sᵀ (Xie et al., "Lighter-Communication Distributed
    Machine Learning via Sufficient Factor Broadcasting", UAI 2016, section 2): S·(K+D) numbers
    stand for K·D.

    Args:
        u: S×K, float32 or float64, C-contiguous; for a dense layer the error at its output.
        v: S×D, of the same dtype; for a dense layer its input. S may be 0.
        copy: Copy the arrays, which then need not be C-contiguous. By default the object keeps the arrays
            themselves; they must not change while an exchange uses them.

    Attributes:
        u: S×K.
        v: S×D.

    Raises:
        TypeError: u or v is not a NumPy array of native float32 or float64.
        ValueError: u and v are not two matrices with equal S and dtype, or not contiguous and ``copy`` is false.

    >>> import numpy as np
    >>> import sfb
    >>> g = sfb.Factors(np.ones((2, 3)), np.ones((2, 4)))
    >>> g
    Factors(S=2, K=3, D=4, dtype=float64)
    >>> g.shape, len(g), g.nbytes
    ((3, 4), 2, 112)
    """

    __slots__ = ("u", "v")
    __array_ufunc__ = None  # so that NumPy leaves `array @ factors` and `scalar * factors` to this class

    u: np.ndarray
    v: np.ndarray

    def __init__(self, u: np.ndarray, v: np.ndarray, *, copy: bool = False) -> None:
        if copy:
            for name, array in (("u", u), ("v", v)):
                check_matrix(name, array, contiguous=False)
            u, v = np.array(u, order="C"), np.array(v, order="C")
        self.u = u
        self.v = v
        self.check()

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"Factors(S={len(self)}, K={rows}, D={columns}, dtype={self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Factors, (self.u, self.v)

    def __len__(self) -> int:
        return self.u.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D), the shape of the matrix that the factors stand for."""
        return self.u.shape[1], self.v.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of both factors."""
        return self.u.dtype

    @property
    def nbytes(self) -> int:
        """The size of the factors in bytes: S·(K+D) elements."""
        return self.u.nbytes + self.v.nbytes

    @property
    def T(self) -> Factors:
        """The D×K transpose, which shares the arrays."""
        return Factors(self.v, self.u)

    def check(self) -> None:
        """Raise the error of the constructor if u and v are no longer factors of a matrix."""
        u, v = self.u, self.v
        if not (is_matrix(u) and is_matrix(v)):
            for name, array in (("u", u), ("v", v)):
                check_matrix(name, array)
        if u.shape[0] != v.shape[0]:
            raise ValueError(f"u and v must have one row per sample each, got {u.shape[0]} and {v.shape[0]} rows")
        if u.dtype != v.dtype:
            raise ValueError(f"u and v must have the same dtype, got {u.dtype} and {v.dtype}")

    def dense(self, out: np.ndarray | None = None) -> np.ndarray:
        """Return the K×D matrix, formed in ``out`` if given.

        Args:
            out: K×D of the factors' dtype, C-contiguous.

        Raises:
            ValueError: ``out`` does not fit.

        >>> import numpy as np
        >>> import sfb
        >>> sfb.Factors(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])).dense()
        array([[3., 4.],
               [6., 8.]])
        """
        return np.dot(self.u.T, self.v, out=out)  # matmul is slow where S is 1

    @staticmethod
    def concatenate(parts: Iterable[Factors]) -> Factors:
        """Return the factors of the sum of ``parts``: the samples of all, in order; ``g + h`` does the same.

        Raises:
            TypeError: A part is not `Factors`.
            ValueError: There are no parts, or parts of different shapes or dtypes.

        >>> import numpy as np
        >>> import sfb
        >>> g = sfb.Factors(np.ones((2, 3)), np.ones((2, 4)))
        >>> sfb.Factors.concatenate([g, g, -0.5 * g])
        Factors(S=6, K=3, D=4, dtype=float64)
        """
        parts = list(parts)
        if not parts:
            raise ValueError("expected at least one Factors to concatenate, got none")
        for part in parts:
            parts[0]._check_like(part)
        return Factors(np.concatenate([p.u for p in parts]), np.concatenate([p.v for p in parts]))

    def inner(self, other: Factors) -> float:
        """Return the Frobenius inner product ⟨G, H⟩ = Σ (U_G U_Hᵀ ∘ V_G V_Hᵀ), without forming K×D.

        Raises:
            TypeError: ``other`` is not `Factors`.
            ValueError: ``other`` has another shape or dtype.

        >>> import numpy as np
        >>> import sfb
        >>> g = sfb.Factors(np.ones((2, 3)), np.ones((2, 4)))
        >>> g.inner(g)
        48.0
        """
        self._check_like(other)
        return shifted(*inner(self.u, self.v, other.u, other.v))

    def norm(self) -> float:
        """Return the Frobenius norm, from the S×S Gram matrices of u and v; not finite if u or v is not.

        >>> import numpy as np
        >>> import sfb
        >>> sfb.Factors(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]])).norm()
        5.0
        """
        square, exponent = inner(self.u, self.v, self.u, self.v)
        return norm_from(square, exponent // 2)

    def __add__(self, other: Factors) -> Factors:
        if not isinstance(other, Factors):
            return NotImplemented
        return Factors.concatenate([self, other])

    def __mul__(self, scale: float) -> Factors:
        if np.ndim(scale) != 0:
            return NotImplemented
        factor = self.dtype.type(scale)
        if self.u.shape[1] <= self.v.shape[1]:
            return Factors(self.u * factor, self.v)
        return Factors(self.u, self.v * factor)

    __rmul__ = __mul__

    def __neg__(self) -> Factors:
        return self * -1.0

    def __truediv__(self, divisor: float) -> Factors:
        if np.ndim(divisor) != 0:
            return NotImplemented
        return self * (1.0 / divisor)

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        """Return G x = uᵀ(v x) for a vector or a matrix x, with S(K+D) multiplications a column.

        >>> import numpy as np
        >>> import sfb
        >>> sfb.Factors(np.ones((2, 3)), np.ones((2, 4))) @ np.ones(4)
        array([8., 8., 8.])
        """
        return self.u.T @ (self.v @ np.asarray(x))

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x) @ self.u.T) @ self.v

    def _check_like(self, other: Factors) -> None:
        if not isinstance(other, Factors):
            raise TypeError(f"expected Factors, got {type(other).__name__}")
        if other.shape != self.shape or other.dtype != self.dtype:
            raise ValueError(
                f"expected factors of a {self.shape} matrix of {self.dtype}, got {other.shape} of {other.dtype}"
            )
