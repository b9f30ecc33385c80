"""Sparse coding by a dictionary of atoms, as a model that mini-batches train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import sfb.kernels as kernels
from sfb.factors import Factors
from sfb.models.model import Gradient, Model, Parameter

__all__ = ["Dictionary", "coding_loss", "dictionary", "encode"]

# Samples whose residuals are formed at once.
_BLOCK = 1024


def encode(
    x: np.ndarray,
    atoms: np.ndarray,
    alpha: float,
    *,
    codes: np.ndarray | None = None,
    positive: bool = False,
    tol: float = 1e-6,
    max_iter: int = 1000,
    threads: int = 1,
) -> tuple[np.ndarray, int]:
    """Return the codes that minimise ½‖X − CA‖² + alpha·‖C‖₁, and how many are not within ``tol`` of the minimum.

    Args:
        x: X, N×D of float32 or float64.
        atoms: A, K×D, of the same type.
        alpha: Weight of the penalty, ≥ 0.
        codes: N×K codes to start from, which are overwritten; None to start from 0.
        positive: Whether codes must not be negative.
        tol: Duality gap at which the code of a sample is done, relative to ‖x‖²; no less than 100 units of rounding.
        max_iter: Most sweeps over the code of a sample.
        threads: The most threads that share the samples.
    """
    found = np.zeros((len(x), len(atoms)), x.dtype) if codes is None else codes
    gram, products = np.ascontiguousarray(atoms @ atoms.T), np.ascontiguousarray(x @ atoms.T)
    squares = np.einsum("ij,ij->i", x, x)
    tol = max(tol, 100 * float(np.finfo(x.dtype).eps))
    undone = kernels.sparse_codes(
        gram, products, squares, found, alpha, positive=positive, tol=tol, max_iter=max_iter, threads=threads
    )
    return found, undone


def coding_loss(x: np.ndarray, codes: np.ndarray, atoms: np.ndarray, alpha: float) -> float:
    """Return ½‖X − CA‖² + alpha·‖C‖₁, summed in float64."""
    square = 0.0
    for low in range(0, len(x), _BLOCK):
        rest = x[low : low + _BLOCK] - codes[low : low + _BLOCK] @ atoms
        square += float(np.sum(np.square(rest, dtype=np.float64)))
    return 0.5 * square + alpha * float(np.sum(np.abs(codes), dtype=np.float64))


class Dictionary(Model):
    """Atoms of which few add up to each sample.

    Minimises ½‖X − CA‖² + alpha·‖C‖₁ by A, K×D with rows in the unit ball, and codes C (Olshausen and Field, "Sparse
    Coding with an Overcomplete Basis Set", Vision Research 37(23), 1997). Codes of a batch are found by coordinate
    descent under the present atoms; so the gradient by A is Cᵀ(CA − X), whose factors are u, the code of a sample, and
    v, its residual (Xie et al., "Lighter-Communication Distributed Machine Learning via Sufficient Factor
    Broadcasting", UAI 2016, section 2, where parameter and factors are transposed).

    Args:
        features: The number of features D.
        components: The number of atoms K.
        alpha: Weight of the penalty, ≥ 0.
        seed: Seed of the first atoms.
        dtype: Type of the atoms.
    """

    measure = "explained part of the squares"

    def __init__(
        self, features: int, *, components: int = 64, alpha: float = 1.0, seed: int = 0, dtype: Any = np.float32
    ) -> None:
        if features < 1 or components < 1:
            raise ValueError(f"a dictionary needs at least 1 feature and 1 atom, got {features} and {components}")
        if not 0 <= alpha < np.inf:
            raise ValueError(f"alpha must be a finite number ≥ 0, got {alpha!r}")
        atoms = np.zeros((components, features), dtype)
        self.parameters = [Parameter("dictionary", atoms, decays=False, radius=1.0)]
        self.alpha = float(alpha)
        self._seed = seed

    @property
    def atoms(self) -> np.ndarray:
        """A, K×D."""
        return self.parameters[0].array

    def initialise(self, x: Any, y: np.ndarray) -> None:
        """Set the atoms to random samples of length 1; random directions take the place of missing and empty ones."""
        rng = np.random.default_rng(self._seed)
        atoms = rng.standard_normal(self.atoms.shape)
        chosen = rng.permutation(x.shape[0])[: len(atoms)]
        samples = self._dense(x, chosen).astype(np.float64)
        there = np.flatnonzero(np.linalg.norm(samples, axis=1))
        atoms[there] = samples[there]
        self.atoms[:] = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Return the codes of dense samples under the present atoms, N×K."""
        return encode(x, self.atoms, self.alpha)[0]

    def gradients(
        self, x: Any, y: np.ndarray, rows: np.ndarray, size: int
    ) -> tuple[float, Iterator[tuple[Parameter, Gradient]]]:
        """Return the loss of samples, and the factors of its gradient by the atoms; see `Model.gradients`."""
        some = self._dense(x, rows[:, 0])
        codes = self.codes(some)
        residuals = codes @ self.atoms
        residuals -= some
        loss = 0.5 * float(np.sum(np.square(residuals, dtype=np.float64)))
        loss += self.alpha * float(np.sum(np.abs(codes), dtype=np.float64))
        codes /= size
        return loss, iter([(self.parameters[0], Factors(codes, residuals))])

    def objective(self, x: Any, y: np.ndarray, rows: np.ndarray) -> float:
        """Return the loss of samples, with the best codes under the present atoms; see `Model.objective`."""
        some = self._dense(x, rows[:, 0])
        return coding_loss(some, self.codes(some), self.atoms, self.alpha)

    def score(
        self, x: Any, y: np.ndarray, references: Sequence[np.ndarray] = (), first: int = 0
    ) -> tuple[float, float]:
        """Return ‖X‖² − ‖X − CA‖² and ‖X‖²."""
        left = total = 0.0
        for low in range(0, x.shape[0], _BLOCK):
            some = self._dense(x, np.arange(low, min(low + _BLOCK, x.shape[0])))
            left += float(np.sum(np.square(some - self.codes(some) @ self.atoms, dtype=np.float64)))
            total += float(np.sum(np.square(some, dtype=np.float64)))
        return total - left, total

    def save(self) -> dict[str, Any]:
        """Return the contents of the model file; see `Model.save`."""
        return {"kind": "dictionary", "components": np.array(self.atoms), "alpha": self.alpha}

    def _dense(self, x: Any, rows: np.ndarray) -> np.ndarray:
        chosen = x[rows]
        chosen = chosen if isinstance(chosen, np.ndarray) else chosen.toarray()
        return np.ascontiguousarray(chosen, self.atoms.dtype)


def dictionary(features: int, outputs: int, *, seed: int = 0, components: int = 64, alpha: float = 1.0) -> Dictionary:
    """Return a dictionary of atoms in the unit ball; factors of a sample x with code c: c, Aᵀc − x."""
    return Dictionary(features, components=components, alpha=alpha, seed=seed)
