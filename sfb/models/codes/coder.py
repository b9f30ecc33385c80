"""What the estimators of dictionaries share: first atoms, the dictionary step, and the use of a dictionary."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

import sfb.kernels as kernels
from sfb.models.codes.coding import encode
from sfb.models.estimator import Estimator, Number
from sfb.models.finite import naming_samples
from sfb.models.ranks import Ranks
from sfb.models.saved.predictors import ModelError

__all__ = ["LOOSE", "Coder", "samples_of", "warn_of"]

# Elements of the diagonal of CᵀC up to which an atom counts as unused, as in scikit-learn and SPAMS.
_UNUSED = 1e-6
# Duality gaps, relative to ‖x‖², at which codes are done while the dictionary changes, and afterwards.
LOOSE, _TIGHT = 1e-6, 1e-8


class Coder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    """What the estimators share: parameters of codes, and the use of a dictionary."""

    components_: np.ndarray
    n_components: int | None
    alpha: float
    dict_init: Any
    transform_algorithm: str
    transform_n_nonzero_coefs: int | None
    transform_alpha: float | None
    transform_max_iter: int
    split_sign: bool
    positive_code: bool
    positive_dict: bool
    numbers: ClassVar = {
        "alpha": Number(0),
        "max_iter": Number(1, whole=True),
        "tol": Number(0),
        "transform_max_iter": Number(1, whole=True),
    }
    choices: ClassVar = {"transform_algorithm": ("lasso_cd", "lasso_lars", "lars", "omp", "threshold")}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_) * (2 if self.split_sign else 1)

    def transform(self, X: Any) -> np.ndarray:
        """Return the codes of local samples, N×D features: N×K, or N×2K with ``split_sign``."""
        check_is_fitted(self)
        with naming_samples(X):
            x = validate_data(self, X, dtype=(np.float64, np.float32), order="C", reset=False)
        alpha = self.alpha if self.transform_alpha is None else self.transform_alpha
        if self.transform_algorithm == "lasso_cd":
            codes, undone = encode(
                x,
                self.components_.astype(x.dtype, copy=False),
                alpha,
                positive=self.positive_code,
                tol=_TIGHT,
                max_iter=self.transform_max_iter,
            )
            warn_of(undone, stacklevel=3)
        else:
            codes = sparse_encode(
                x,
                self.components_.astype(x.dtype, copy=False),
                algorithm=self.transform_algorithm,
                n_nonzero_coefs=self.transform_n_nonzero_coefs,
                alpha=alpha,
                max_iter=self.transform_max_iter,
                positive=self.positive_code,
            )
        return np.hstack([np.maximum(codes, 0), np.maximum(-codes, 0)]) if self.split_sign else codes

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the samples that codes stand for, N×D.

        Args:
            X: Codes of `transform`, N×K, or N×2K with ``split_sign``.
        """
        check_is_fitted(self)
        codes = check_array(X, dtype=(np.float64, np.float32))
        if codes.shape[1] != self._n_features_out:
            raise ValueError(f"X has {codes.shape[1]} components, but the dictionary {self._n_features_out}")
        if self.split_sign:
            codes = codes[:, : len(self.components_)] - codes[:, len(self.components_) :]
        return codes @ self.components_

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        if self.transform_algorithm != "lasso_cd":
            raise ModelError(
                f"a model file finds codes by transform_algorithm='lasso_cd', not by {self.transform_algorithm!r}: "
                "set_params(transform_algorithm='lasso_cd') makes the dictionary one that can be saved"
            )
        return {
            "kind": "dictionary",
            "model": type(self).__name__,
            "components": self.components_,
            "alpha": float(self.alpha if self.transform_alpha is None else self.transform_alpha),
            "positive_code": bool(self.positive_code),
            "split_sign": bool(self.split_sign),
        }

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("n_components", "transform_n_nonzero_coefs"):
            if getattr(self, name) is not None:
                Number(1, whole=True).check(name, getattr(self, name))
        if self.transform_alpha is not None:
            Number(0).check("transform_alpha", self.transform_alpha)

    def _first(self, ranks: Ranks, x: np.ndarray, seed: int) -> np.ndarray:
        """Return the dictionary to start from, K×D with zeros for atoms that are missing; collective."""
        features, given = x.shape[1], None
        count = features if self.n_components is None else int(self.n_components)
        with ranks.together("fit"):
            if self.dict_init is not None:
                given = check_array(self.dict_init, dtype=x.dtype)
                if given.shape[1] != features:
                    raise ValueError(f"dict_init must have the {features} features of X, got {given.shape[1]}")
        given = self._guess(ranks, x, count, seed) if given is None else ranks.first(given)
        first = np.zeros((count, features), x.dtype)
        first[: len(given)] = given[:count]
        if self.positive_dict:
            np.maximum(first, 0, out=first)
        kernels.project_rows(first, 1.0)
        return first

    def _guess(self, ranks: Ranks, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return at most ``count`` atoms to start from, the same bits on all ranks; collective."""
        raise NotImplementedError

    def _improve(
        self, ranks: Ranks, x: np.ndarray, codes: np.ndarray, sums: np.ndarray, atoms: np.ndarray, rng: Any
    ) -> None:
        """Update atoms by the sums over ranks, and replace unused ones by samples; collective.

        Args:
            ranks: The ranks.
            x: Samples of this rank from which new atoms are drawn.
            codes: Their codes; those of an atom that is replaced become 0.
            sums: CᵀX and CᵀC side by side, K×(D+K), the same bits on all ranks.
            atoms: A, K×D, the same bits on all ranks.
            rng: A generator in the same state on all ranks.
        """
        unused = np.flatnonzero(sums[:, x.shape[1] :].diagonal() <= _UNUSED)
        if len(unused):
            chosen = rng.randint(sum(ranks.gather(len(x))), size=len(unused))
            noise = 0.01 * rng.standard_normal((len(unused), x.shape[1]))
            atoms[unused] = samples_of(ranks, x, chosen, noise)
            codes[:, unused] = 0
        kernels.update_atoms(sums, atoms, positive=self.positive_dict, least=_UNUSED)


def samples_of(ranks: Ranks, x: np.ndarray, chosen: np.ndarray, noise: Any = 0.0) -> np.ndarray:
    """Return some samples of all ranks, M×D, the same bits on all of them; collective.

    Args:
        ranks: The ranks.
        x: Samples of this rank.
        chosen: M indices among the samples of all ranks, in the order of ranks.
        noise: M×D to add, in standard deviations of a sample.
    """
    mine = chosen - sum(ranks.gather(len(x))[: ranks.rank])
    here = np.flatnonzero((mine >= 0) & (mine < len(x)))
    found = np.zeros((len(chosen), x.shape[1]), x.dtype)
    samples = x[mine[here]]
    levels = samples.std(axis=1, keepdims=True)
    found[here] = samples + np.where(levels > 0, levels, 1) * np.broadcast_to(noise, found.shape)[here]
    return ranks.sum(found)


def warn_of(undone: int, stacklevel: int) -> None:
    """Warn if codes are not optimal."""
    if undone:
        warnings.warn(
            f"{undone} codes are not optimal: raise transform_max_iter or alpha",
            ConvergenceWarning,
            stacklevel=stacklevel + 1,
        )
