"""Maps of the features by NumPy alone, from the arrays of a model file: metrics and dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sfb.models.saved.predictors import ModelError, Predictor
from sfb.models.saved.rows import CSR, check_rows, product

__all__ = ["DictionaryPredictor", "MetricPredictor", "NearestPredictor"]

# Samples that a dictionary encodes at a time, and distances that are computed at a time.
_SAMPLES, _DISTANCES = 4096, 1 << 22


class MetricPredictor(Predictor):
    """A linear map: components K×D, between whose results Euclidean distances are the learned ones."""

    kind = "metric"

    def _open(self) -> int:
        self.components_ = self._array("components", (None, None))
        return self.components_.shape[1]

    def transform(self, X: Any) -> np.ndarray:
        """Return the samples where Euclidean distances are the learned ones, N×K.

        Args:
            X: N×D features, an array or a CSR matrix.
        """
        return self._product(X, self.components_.T)


class NearestPredictor(MetricPredictor):
    """A metric with M references: their K components, M×K, and labels, M indices of classes."""

    kind = "nearest"

    def _open(self) -> int:
        features = super()._open()
        references = self._array("references", (None, len(self.components_)))
        classes, labels = self.classes_, self._arrays.get("labels")
        if classes is None or classes.ndim != 1:
            raise ModelError("is no complete model of kind nearest: it lacks the array classes")
        if labels is None or labels.dtype.kind not in "iu" or labels.shape != (len(references),):
            raise ModelError(f"labels must be integers of shape ({len(references)},), one for each reference")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ModelError(f"labels must be from 0 to {len(classes) - 1}, indices of the classes")
        self._labels, self._references = labels, references.astype(np.float64)
        self._squares = np.einsum("ij,ij->i", self._references, self._references)
        return features

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of the nearest reference of each sample, N.

        Args:
            X: N×D features, an array or a CSR matrix.
        """
        assert self.classes_ is not None
        z = self.transform(X).astype(np.float64)
        nearest = np.empty(len(z), np.intp)
        size = max(1, _DISTANCES // len(self._references))
        for start in range(0, len(z), size):
            part = slice(start, start + size)
            # ‖z − r‖² less ‖z‖², which is the same for all references.
            nearest[part] = (self._squares - 2 * (z[part] @ self._references.T)).argmin(axis=1)
        return self.classes_[self._labels[nearest]]


class DictionaryPredictor(Predictor):
    """A dictionary: components K×D, the atoms; alpha, the penalty of codes."""

    kind = "dictionary"

    def _open(self) -> int:
        self.components_ = self._array("components", (None, None))
        self.alpha = self._number("alpha")
        return self.components_.shape[1]

    def transform(self, X: Any, *, tol: float = 1e-6, max_iter: int = 1000) -> np.ndarray:
        """Return the sparse codes of samples, N×K: the c that minimise ½‖x − cD‖² + alpha·‖c‖₁ for the atoms D.

        Coordinate descent takes one atom after another, for all samples at once (Friedman, Hastie and Tibshirani,
        "Regularization Paths for Generalized Linear Models via Coordinate Descent", J. Stat. Softw. 33(1), 2010,
        section 2.2).

        Args:
            X: N×D features, an array or a CSR matrix.
            tol: The largest change of a code in a pass, relative to the largest code, at which it ends.
            max_iter: Most passes over the atoms.

        Returns:
            N×K codes; with ``split_sign`` N×2K, the positive parts and the negative ones side by side.
        """
        rows = check_rows(X, self.n_features_in_)
        gram = self.components_ @ self.components_.T
        parts = [
            self._encode(product(part, self.components_.T, self.scaler), gram, tol, max_iter) for part in _parts(rows)
        ]
        codes = np.concatenate(parts) if parts else np.empty((0, len(gram)), gram.dtype)
        if self.settings.get("split_sign", False):
            return np.hstack([np.maximum(codes, 0), np.maximum(-codes, 0)])
        return codes

    def _encode(self, correlations: np.ndarray, gram: np.ndarray, tol: float, max_iter: int) -> np.ndarray:
        """Return the codes of samples whose ``correlations`` with the atoms, N×K, are overwritten."""
        codes = np.zeros_like(correlations)
        positive = bool(self.settings.get("positive_code", False))
        for _ in range(max_iter):
            change = 0.0
            for k, square in enumerate(np.diagonal(gram)):
                if not square > 0:  # an atom of zeros takes no part
                    continue
                wanted = correlations[:, k] + square * codes[:, k]
                size = wanted - self.alpha if positive else np.abs(wanted) - self.alpha
                found = np.maximum(size, 0) / square
                if not positive:
                    found = np.copysign(found, wanted)
                step = found - codes[:, k]
                moved = np.flatnonzero(step)
                if moved.size:
                    correlations[moved] -= np.multiply.outer(step[moved], gram[k])
                    codes[:, k] = found
                    change = max(change, float(np.abs(step).max()))
            if change <= tol * float(np.abs(codes).max(initial=0)):
                break
        return codes


def _parts(rows: np.ndarray | CSR) -> Iterator[np.ndarray | CSR]:
    """Yield some rows at a time."""
    for start in range(0, rows.shape[0], _SAMPLES):
        yield rows[start : start + _SAMPLES]
