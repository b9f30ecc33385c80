"""Distance metric learning by pairs of samples, as a model that mini-batches train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sfb.factors import Factors
from sfb.models.metrics import pairs
from sfb.models.model import Gradient, Model, Parameter

__all__ = ["Metric", "dml", "pair_loss"]

# Samples from which the first components are computed, and rows whose neighbours are looked for at once.
_SAMPLES, _BLOCK = 2000, 512


def pair_loss(projected: np.ndarray, similar: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each of S pairs, and the factor of Ld in its derivative.

    The loss is ‖Ld‖² of a similar pair, and λ·max(0, 1 − ‖Ld‖²) of a dissimilar one; so its derivative by L is udᵀ with
    u = 2Ld, and u = −2λLd where the hinge is active (Xie et al., "Lighter-Communication Distributed Machine Learning
    via Sufficient Factor Broadcasting", UAI 2016, section 2).

    Args:
        projected: Ld of each pair with d = x − y, S×R.
        similar: Whether a pair is similar, S.
        weight: λ.

    Returns:
        S losses in float64, and S numbers.
    """
    squares = np.einsum("ij,ij->i", projected, projected, dtype=np.float64)
    losses = np.where(similar, squares, weight * np.maximum(0, 1 - squares))
    return losses, np.where(similar, 2.0, np.where(squares < 1, -2.0 * weight, 0.0))


class Metric(Model):
    """A linear map L, R×D, under which samples of a class are near, and those of different classes apart.

    Minimises ‖L(x − y)‖² of similar pairs, and λ·max(0, 1 − ‖L(x − y)‖²) of dissimilar ones: the problem of Xing, Ng,
    Jordan and Russell ("Distance Metric Learning, with Application to Clustering with Side-Information", NIPS 2002) as
    Xie et al. (UAI 2016, section 2) state it without constraints. The factors of a pair are u, a multiple of Ld, and
    v = d = x − y.

    An example is a sample with random candidates of its class, and as many of other classes. The nearest of either kind
    under the present L are its partners, so that pairs are hard: like the "target neighbors" and "impostors" of
    Weinberger and Saul ("Distance Metric Learning for Large Margin Nearest Neighbor Classification", JMLR 10, 2009).

    Args:
        features: The number of features D.
        components: The number of components R, at most D.
        dissimilar_weight: λ, > 0.
        candidates: The number of candidates of either kind; 1 for random pairs.
        seed: Seed of what is drawn at the start.
        dtype: Type of the components.
    """

    measure = "1-NN accuracy, leave one out"
    terms = 2  # a similar pair and a dissimilar one

    def __init__(
        self,
        features: int,
        *,
        components: int = 64,
        dissimilar_weight: float = 8.0,
        candidates: int = 8,
        seed: int = 0,
        dtype: Any = np.float32,
    ) -> None:
        for name, number in {"features": features, "components": components, "candidates": candidates}.items():
            if number < 1:
                raise ValueError(f"{name} must be ≥ 1, got {number!r}")
        if not 0 < dissimilar_weight < np.inf:
            raise ValueError(f"dissimilar_weight must be a finite number > 0, got {dissimilar_weight!r}")
        self.parameters = [Parameter("components", np.zeros((min(components, features), features), dtype))]
        self.dissimilar_weight = dissimilar_weight
        self.candidates = candidates
        self._seed = seed

    @property
    def components(self) -> np.ndarray:
        """L, R×D."""
        return self.parameters[0].array

    def initialise(self, x: Any, y: np.ndarray) -> None:
        """Set L to principal components of some samples, of such length that dissimilar pairs are at 1 on average."""
        rng = np.random.default_rng(self._seed)
        chosen = np.sort(rng.choice(x.shape[0], min(_SAMPLES, x.shape[0]), replace=False))
        some, labels = dense(x, chosen).astype(np.float64), y[chosen]
        centred = some - some.mean(axis=0)
        values, vectors = np.linalg.eigh(centred @ centred.T)
        order = np.argsort(-values)[: len(self.components)]
        lengths = np.sqrt(np.maximum(values[order], 0))
        directions = (vectors[:, order].T @ centred) / np.where(lengths > 0, lengths, 1)[:, np.newaxis]
        self.components[:] = 0
        self.components[: len(directions)] = directions
        pairs, similar = self.pairs_of(some, self.examples(labels, rng))
        self.components[:] *= scale_of(self.components, some, pairs[~similar])

    def examples(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return each sample with its candidates, N×M; see `sfb.models.metrics.pairs.candidates`."""
        return pairs.candidates(y, self.candidates, rng)

    def pairs_of(self, x: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of examples under the present metric, M×2, and whether each is similar."""
        z = self.transform(x[rows.ravel()]).reshape(*rows.shape, len(self.components))
        return pairs.nearest(z, rows)

    def transform(self, x: Any) -> np.ndarray:
        """Return XLᵀ for samples, N×D dense or CSR."""
        return np.asarray(x @ self.components.T)

    def gradients(
        self, x: Any, y: np.ndarray, rows: np.ndarray, size: int
    ) -> tuple[float, Iterator[tuple[Parameter, Gradient]]]:
        """Return the loss of the pairs of examples, and the factors of its gradient; see `Model.gradients`."""
        loss, factors = self.of_pairs(x, *self.pairs_of(x, rows), size)
        return loss, iter([(self.parameters[0], factors)])

    def of_pairs(self, x: Any, rows: np.ndarray, similar: np.ndarray, size: int) -> tuple[float, Factors]:
        """Return the sum of the losses of pairs, and the factors of its gradient divided by ``size``.

        Args:
            x: Samples, N×D.
            rows: S×2: the samples of each pair.
            similar: Whether a pair is similar, S.
            size: The pairs of the batch, of all ranks.
        """
        differences = dense(x, rows[:, 0]) - dense(x, rows[:, 1])
        u = differences @ self.components.T
        losses, slopes = pair_loss(u, similar, self.dissimilar_weight)
        u *= (slopes / size)[:, np.newaxis].astype(u.dtype)
        return float(losses.sum()), Factors(u, differences)

    def objective(self, x: Any, y: np.ndarray, rows: np.ndarray) -> float:
        """Return the loss of the pairs of examples; see `Model.objective`."""
        chosen, similar = self.pairs_of(x, rows)
        projected = (dense(x, chosen[:, 0]) - dense(x, chosen[:, 1])) @ self.components.T
        return float(pair_loss(projected, similar, self.dissimilar_weight)[0].sum())

    def references(self, x: Any, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return samples as `transform` gives them, N×R, and their labels."""
        return self.transform(x), y

    def score(
        self, x: Any, y: np.ndarray, references: Sequence[np.ndarray] = (), first: int = 0
    ) -> tuple[float, float]:
        """Return how many samples have the label of the nearest other reference, and how many samples there are."""
        others, labels = references or self.references(x, y)
        z, right = others[first : first + len(y)], 0
        squares = np.einsum("ij,ij->i", others, others)
        for low in range(0, len(z) if len(others) > 1 else 0, _BLOCK):
            mine = np.arange(low, min(low + _BLOCK, len(z)))
            distances = squares - 2 * (z[mine] @ others.T)
            distances[np.arange(len(mine)), first + mine] = np.inf
            right += int(np.sum(labels[distances.argmin(axis=1)] == y[mine]))
        return float(right), float(len(z))

    def save(self) -> dict[str, Any]:
        """Return the contents of the model file; see `Model.save`."""
        return {"kind": "metric", "components": np.array(self.components)}


def dml(
    features: int,
    outputs: int,
    *,
    seed: int = 0,
    components: int = 64,
    dissimilar_weight: float = 8.0,
    candidates: int = 8,
) -> Metric:
    """Return a metric learned by pairs drawn from labels; factors of a pair (x, y): a multiple of L(x − y), x − y."""
    return Metric(
        features, components=components, dissimilar_weight=dissimilar_weight, candidates=candidates, seed=seed
    )


def scale_of(components: np.ndarray, x: Any, rows: np.ndarray) -> float:
    """Return the factor of L at which ‖Ld‖² of these pairs is 1 on average; 1 if there are none, or all are alike."""
    projected = (dense(x, rows[:, 0]) - dense(x, rows[:, 1])) @ components.T
    mean = float(np.vdot(projected, projected)) / max(1, len(rows))
    return 1 / np.sqrt(mean) if mean > 0 else 1.0


def dense(x: Any, rows: np.ndarray) -> np.ndarray:
    """Return some rows of dense or CSR samples as a C-contiguous array."""
    chosen = x[rows]
    return chosen if isinstance(chosen, np.ndarray) else chosen.toarray()
