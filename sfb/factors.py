"""Sufficient factors of a matrix gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sfb.checks import check_csr, check_matrix, is_canonical, is_matrix, is_receiver, is_sparse
from sfb.kernels.norms import inner, norm_from, shifted

__all__ = ["Factors"]


class Factors:
    """The K×D matrix uᵀv, kept as its sufficient factors and never formed.

    A gradient over S samples is G = Σ_s u_s v_sᵀ (Xie et al., "Lighter-Communication Distributed
    Machine Learning via Sufficient Factor Broadcasting", UAI 2016, section 2): S·(K+D) numbers
    stand for K·D.

    Args:
        u: S×K, float32 or float64, C-contiguous; for a dense layer the error at its output.
        v: S×D, of the same dtype; for a dense layer its input. S may be 0. Or a SciPy CSR matrix or array, of which
            only the non-zeros travel; a copy of it in canonical form if its columns do not rise within each row.
        copy: Copy the arrays, which then need not be C-contiguous. By default the object keeps the arrays
            themselves; they must not change while an exchange uses them.

    Attributes:
        u: S×K.
        v: S×D.

    Raises:
        TypeError: u is not a NumPy array of native float32 or float64, or v neither that nor CSR of such elements.
        ValueError: u and v are not two matrices with equal S and dtype, or not contiguous and ``copy`` is false; or
            v has 2³¹ columns and is CSR, or its parts do not fit each other.

    >>> import numpy as np
    >>> import sfb
    >>> g = sfb.Factors(np.ones((2, 3)), np.ones((2, 4)))
    >>> g
    Factors(S=2, K=3, D=4, dtype=float64)
    >>> g.shape, len(g), g.nbytes
    ((3, 4), 2, 112)
    >>> from scipy.sparse import csr_array
    >>> sfb.Factors(np.ones((2, 3)), csr_array([[0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    Factors(S=2, K=3, D=4, dtype=float64, CSR with 1 non-zeros)
    """

    __slots__ = ("u", "v")
    __array_ufunc__ = None  # so that NumPy leaves `array @ factors` and `scalar * factors` to this class

    u: np.ndarray
    v: Any

    def __init__(self, u: np.ndarray, v: Any, *, copy: bool = False) -> None:
        if type(v) is not np.ndarray and is_sparse(v):
            v = _canonical(v, copy=copy)
        elif copy:
            check_matrix("v", v, contiguous=False)
            v = np.array(v, order="C")
        if copy:
            check_matrix("u", u, contiguous=False)
            u = np.array(u, order="C")
        self.u = u
        self.v = v
        self.check()

    def __repr__(self) -> str:
        rows, columns = self.shape
        filled = f", CSR with {self.nonzeros} non-zeros" if self.sparse else ""
        return f"Factors(S={len(self)}, K={rows}, D={columns}, dtype={self.dtype}{filled})"

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
    def sparse(self) -> bool:
        """Whether v is CSR."""
        return not isinstance(self.v, np.ndarray)

    @property
    def nonzeros(self) -> int:
        """The stored elements of v, S·D unless it is CSR."""
        return int(self.v.indptr[-1]) if self.sparse else self.v.size

    @property
    def nbytes(self) -> int:
        """The size of the factors in bytes: S·(K+D) elements.

        With CSR v S·K elements, an element and its column for each non-zero, and S+1 starts of samples.
        """
        if self.sparse:
            return self.u.nbytes + self.v.data.nbytes + self.v.indices.nbytes + self.v.indptr.nbytes
        return self.u.nbytes + self.v.nbytes

    @property
    def T(self) -> Factors:
        """The D×K transpose, which shares the arrays.

        Raises:
            TypeError: v is CSR; only v may be.
        """
        if self.sparse:
            raise TypeError("factors with CSR v have no transpose: u must be dense")
        return Factors(self.v, self.u)

    def check(self) -> None:
        """Raise the error of the constructor if u and v are no longer factors of a matrix."""
        u, v = self.u, self.v
        if not (is_matrix(u) and is_matrix(v)):
            check_matrix("u", u)
            if is_sparse(v):
                check_csr("v", v)
                if not is_canonical(v):
                    raise ValueError("v must have columns that rise within each row; call v.sum_duplicates()")
            else:
                check_matrix("v", v)
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
        if not self.sparse:
            return np.dot(self.u.T, self.v, out=out)  # matmul is slow where S is 1
        product = (self.v.T @ self.u).T
        if out is None:
            return np.ascontiguousarray(product)
        if not is_receiver(out) or (out.shape, out.dtype) != (self.shape, self.dtype):
            raise ValueError(f"out must be a C-contiguous {self.shape} {self.dtype} array")
        out[...] = product
        return out

    @staticmethod
    def concatenate(parts: Iterable[Factors]) -> Factors:
        """Return the factors of the sum of ``parts``: the samples of all, in order; ``g + h`` does the same.

        v is CSR if that of all parts is.

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
        u = np.concatenate([p.u for p in parts])
        if all(p.sparse for p in parts):
            from scipy.sparse import vstack

            return Factors(u, vstack([p.v for p in parts], format="csr", dtype=u.dtype))
        return Factors(u, np.concatenate([p.v.toarray() if p.sparse else p.v for p in parts]))

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
        if self.sparse or self.u.shape[1] <= self.v.shape[1]:
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


def _canonical(v: Any, *, copy: bool) -> Any:
    """Return a sparse v if it is in canonical form, else a copy that is."""
    check_csr("v", v)
    canonical = is_canonical(v)
    if copy or not canonical:
        v = v.copy()
    if not canonical:
        v.has_canonical_format = v.has_sorted_indices = False  # what SciPy noted earlier may no longer hold
        v.sum_duplicates()
    return v
