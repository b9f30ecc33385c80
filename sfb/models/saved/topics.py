"""Topics of documents by NumPy alone, from the arrays of a model file."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfb.models.saved.predictors import ModelError, Predictor
from sfb.models.saved.rows import CSR, check_rows

__all__ = ["TopicPredictor"]

# Documents whose topics are found at a time.
_DOCUMENTS = 1024
_MOST_ROUNDS = 1_000_000


class TopicPredictor(Predictor):
    """Topics: components K×V, weights of words by topic; doc_topic_prior K; and the V words, if they are known.

    Attributes:
        vocabulary_: The words, or None.
    """

    kind = "lda"

    def _open(self) -> int:
        self.components_ = self._array("components", (None, None))
        self._prior = self._array("doc_topic_prior", (len(self.components_),))
        self._tol, self._rounds = self._number("mean_change_tol"), int(self._number("max_doc_update_iter"))
        if self._rounds > _MOST_ROUNDS:
            raise ModelError(f"max_doc_update_iter must be at most {_MOST_ROUNDS}, got {self._rounds}")
        words = self.components_.shape[1]
        self.vocabulary_ = self._arrays.get("vocabulary")
        if self.vocabulary_ is not None and self.vocabulary_.shape != (words,):
            raise ModelError(f"vocabulary must hold {words} words, got an array {self.vocabulary_.shape}")
        if (self.components_ < 0).any() or not (self.components_.sum(axis=0) > 0).all() or (self._prior <= 0).any():
            raise ModelError("components must be ≥ 0, with a topic for each word, and doc_topic_prior must be > 0")
        self._topics = (self.components_ / self.components_.sum(axis=1, keepdims=True)).T
        return words

    def transform(self, X: Any) -> np.ndarray:
        """Return the distribution over topics of each document, N×K; without words, that of the prior.

        Each word has a distribution over topics, given those of the other words of its document and the topics of all
        words (CVB0: Asuncion et al., "On Smoothing and Inference for Topic Models", UAI 2009, section 3.4). A round
        takes one word after another, of many documents at once.

        Args:
            X: N×V counts of words, an array or a CSR matrix.
        """
        rows = check_rows(X, self.n_features_in_)
        parts = []
        for start in range(0, rows.shape[0], _DOCUMENTS):
            lengths, words, counts = _entries(rows[start : start + _DOCUMENTS])
            parts.append(self._infer(lengths, words, counts))
        return np.concatenate(parts) if parts else np.empty((0, len(self._prior)))

    def top_words(self, n: int = 10) -> list[list[Any]]:
        """Return the n likeliest words of each topic: words if the file holds them, else their numbers."""
        order = np.argsort(-self.components_, axis=1, kind="stable")[:, :n]
        return (order if self.vocabulary_ is None else self.vocabulary_[order]).tolist()

    def _infer(self, lengths: np.ndarray, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the topics of documents with so many entries each, N×K."""
        owners = np.repeat(np.arange(len(lengths)), lengths)
        starts = np.cumsum(lengths) - lengths
        places = np.arange(len(words)) - starts[owners]
        chances = self._topics[words]
        parts = chances / chances.sum(axis=1, keepdims=True)
        sums = np.tile(self._prior, (len(lengths), 1))
        np.add.at(sums, owners, counts[:, np.newaxis] * parts)
        tokens = np.bincount(owners, counts, minlength=len(lengths))
        # Entries by their place in their document: those of one place belong to different documents.
        order = np.argsort(places, kind="stable")
        at_place = np.split(order, np.cumsum(np.bincount(places))[:-1]) if len(places) else []
        active = tokens > 0
        for _ in range(self._rounds):
            if not active.any():
                break
            change = np.zeros(len(lengths))
            for entries in at_place:
                chosen = entries[active[owners[entries]]]
                documents = owners[chosen]
                # Rounding may leave a sum of the other words below the prior.
                new = chances[chosen] * np.maximum(sums[documents] - parts[chosen], self._prior)
                step = new / new.sum(axis=1, keepdims=True) - parts[chosen]
                parts[chosen] += step
                sums[documents] += counts[chosen, np.newaxis] * step
                change[documents] += counts[chosen] * np.abs(step).sum(axis=1)
            active &= change > self._tol * tokens
        return sums / sums.sum(axis=1, keepdims=True)


def _entries(rows: np.ndarray | CSR) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how many words each document has, their numbers in ascending order, and their counts in float64.

    Raises:
        ValueError: A count is negative.
    """
    width = rows.shape[1]
    if isinstance(rows, CSR):
        owners = np.repeat(np.arange(rows.shape[0], dtype=np.int64), np.diff(rows.indptr))
        keys, where = np.unique(owners * width + rows.indices, return_inverse=True)
        counts = np.bincount(where, rows.data, minlength=len(keys))  # duplicates are added
    else:
        keys = np.flatnonzero(rows)
        counts = rows.ravel()[keys].astype(np.float64)
    if (counts < 0).any():
        raise ValueError("Negative values in data: counts of words must be whole numbers ≥ 0")
    keys, counts = keys[counts > 0], counts[counts > 0]
    return np.bincount(keys // width, minlength=rows.shape[0]), keys % width, counts
