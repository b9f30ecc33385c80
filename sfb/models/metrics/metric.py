"""Metric learning, data-parallel: the ranks exchange the factors of pairs of samples."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

import sfb
from sfb.models.collective import batches, place, seed_of, take
from sfb.models.estimator import Number
from sfb.models.metrics.dml import Metric, dense
from sfb.models.metrics.mahalanobis import Mahalanobis
from sfb.models.metrics.sources import Given, Labelled, given_pairs
from sfb.models.ranks import Ranks
from sfb.models.samples import check_samples
from sfb.models.spectrum import principal

__all__ = ["MetricLearning"]

# Components, unless the user says how many; and examples whose pairs are formed at once.
_COMPONENTS, _BLOCK = 64, 1024


class MetricLearning(Mahalanobis):
    """Linear metric under which samples of a class are near, and those of different classes apart.

    Minimises Σ ‖L(x − y)‖² over similar pairs + λ·Σ max(0, 1 − ‖L(x − y)‖²) over dissimilar pairs: the problem of Xing,
    Ng, Jordan and Russell ("Distance Metric Learning, with Application to Clustering with Side-Information", NIPS 2002)
    as Xie et al. state it without constraints ("Lighter-Communication Distributed Machine Learning via Sufficient
    Factor Broadcasting", UAI 2016, section 2). The ranks exchange Ld and d = x − y of the pairs of each batch as
    factors, and hold the same components, bit for bit.

    `fit` draws pairs from labels, `fit_pairs` takes them. Each rank draws pairs among its own samples, so shards should
    hold several samples of several classes each.

    Args:
        n_components: The number of components R; None for as many as features, at most 64.
        init: The first components: "pca" for principal components of all samples, "identity", "random", or an R×D
            array. All but an array are scaled so that dissimilar pairs are at distance 1 on average.
        n_candidates: Samples of either kind, drawn at random in each epoch, of which the nearest under the present
            metric are the partners of a sample, ≥ 1; 1 for random pairs.
        dissimilar_weight: λ, > 0.
        solver: Update rule: "adam", "adagrad" or "sgd".
        learning_rate_init: Learning rate, > 0, for components whose root mean square is 1 at the start; so it does not
            depend on the scale of the features.
        momentum: Momentum of "sgd", 0 to 1.
        batch_size: Samples of a step, each with two partners, or pairs of `fit_pairs`; of all ranks together, ≥ 1.
        max_iter: Most epochs, ≥ 1. Many epochs fit the pairs ever closer, and may lower the
            score of other samples.
        shuffle: Whether each epoch takes the samples or pairs in another order.
        tol: Least improvement of the mean loss of an epoch that counts as one, ≥ 0.
        n_iter_no_change: Epochs without improvement, after which training ends, ≥ 1.
        warm_start: Whether `fit` starts from the components that there are.
        store_references: Whether every rank keeps the transformed samples of all ranks, N×R, which `score` needs.
        random_state: Seed of components, pairs and order; that of rank 0 counts.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        components_: L, R×D, the same bits on all ranks.
        loss_: Loss of the last epoch, each pair before its step, per sample, or per pair of `fit_pairs`.
        loss_curve_: Loss of each epoch.
        n_iter_: Number of epochs.
        n_features_in_: Number of features D.
        references_: Transformed samples of all ranks, N×R, in the order of ranks, and their labels, N; None after
            `fit_pairs` or without ``store_references``.

    >>> import numpy as np
    >>> from sfb.models import MetricLearning
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(0, [0.1, 5], (60, 2)), np.arange(60) % 2
    >>> X[:, 0] += y  # the second feature is noise
    >>> metric = MetricLearning(random_state=0).fit(X[:40], y[:40])
    >>> metric.score(X[40:], y[40:])
    1.0
    """

    loss_: float
    loss_curve_: list[float]
    n_iter_: int
    # Steps that the rule has taken, and its state, from which partial_fit goes on.
    _moments: tuple[int, list[np.ndarray | None]]

    numbers: ClassVar = {
        "n_candidates": Number(1, whole=True),
        "dissimilar_weight": Number(0, above=True),
        "learning_rate_init": Number(0, above=True),
        "momentum": Number(0, 1),
        "batch_size": Number(1, whole=True),
        "max_iter": Number(1, whole=True),
        "tol": Number(0),
        "n_iter_no_change": Number(1, whole=True),
    }
    choices: ClassVar = {"solver": ("adam", "adagrad", "sgd")}

    def __init__(
        self,
        n_components: int | None = None,
        *,
        init: Any = "pca",
        n_candidates: int = 8,
        dissimilar_weight: float = 8.0,
        solver: str = "adam",
        learning_rate_init: float = 0.01,
        momentum: float = 0.9,
        batch_size: int = 128,
        max_iter: int = 20,
        shuffle: bool = True,
        tol: float = 1e-4,
        n_iter_no_change: int = 5,
        warm_start: bool = False,
        store_references: bool = True,
        random_state: Any = None,
        comm: Any = None,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.n_candidates = n_candidates
        self.dissimilar_weight = dissimilar_weight
        self.solver = solver
        self.learning_rate_init = learning_rate_init
        self.momentum = momentum
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.store_references = store_references
        self.random_state = random_state
        self.comm = comm

    def fit(self, X: Any, y: Any) -> MetricLearning:
        """Learn from pairs that are drawn from the labels of all ranks; collective.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N labels.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong, or all samples have the same label, or
                the loss is no longer finite; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            self._fit_labels(ranks, X, y, epochs=self.max_iter, fresh=True)
        return self

    def partial_fit(self, X: Any, y: Any) -> MetricLearning:
        """Learn from the samples of all ranks in one epoch, and from the components that there are; collective.

        Arguments, result and errors are those of `fit`. The references are the samples of this call.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            fresh = not hasattr(self, "components_")
            ranks.compare("partial_fit", f"partial_fit of a {'new' if fresh else 'fitted'} estimator")
            self._fit_labels(ranks, X, y, epochs=1, fresh=fresh)
        return self

    def fit_pairs(self, pairs: Any, y: Any, X: Any = None) -> MetricLearning:
        """Learn from given pairs; collective.

        Args:
            pairs: N pairs of this rank, N×2×D features; or, with ``X``, N×2 indices of its rows. N may be 0 on some
                ranks.
            y: 1 for each similar pair, −1 for a dissimilar one.
            X: Samples of this rank, M×D, an array or a SciPy sparse matrix; None if ``pairs`` hold features.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong, or all pairs are similar, or the loss
                is no longer finite; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            with ranks.together("fit_pairs"):
                rows, similar, samples = given_pairs(pairs, y, X)
            x = check_samples(self, ranks, samples, call="fit_pairs", sparse=True)
            with ranks.together("fit_pairs"):
                if rows.size and not 0 <= rows.min() <= rows.max() < x.shape[0]:
                    raise ValueError(f"pairs must be indices of the {x.shape[0]} rows of X, got {rows.max()}")
            metric = self._metric(ranks, x, fresh=True)
            self._descend(ranks, x, metric, Given(rows, similar), self.max_iter, fresh=True)
            self.references_ = None
        return self

    def _fit_labels(self, ranks: Ranks, x: Any, y: Any, *, epochs: int, fresh: bool) -> None:
        """Learn from pairs drawn from labels; collective."""
        x, y = self._arrays(ranks, x, y, reset=fresh)
        labels = self._labels(ranks, y)
        metric = self._metric(ranks, x, fresh=fresh)
        self._descend(ranks, x, metric, Labelled(metric, x, labels), epochs, fresh=fresh)
        self.references_ = None
        if self.store_references:
            parts = ranks.gather((np.asarray(x @ self.components_.T), y))
            samples = np.concatenate([samples for samples, _ in parts])
            self.references_ = samples, np.concatenate([labels for _, labels in parts if len(labels)])

    @staticmethod
    def _labels(ranks: Ranks, y: np.ndarray) -> np.ndarray:
        """Return an index for each label of this rank; collective.

        Raises:
            TypeError, ValueError: The labels of a rank are none, or do not go with those of others, or all samples have
                the same label; on every rank.
        """
        known, indices = np.empty(0), np.empty(0, np.int64)
        with ranks.together("fit"):
            if len(y):
                check_classification_targets(y)
                known, indices = np.unique(y, return_inverse=True)
        every = [labels for labels in ranks.gather(known) if len(labels)]
        with ranks.together("fit"):
            if len({labels.dtype.kind in "OUST" for labels in every}) > 1:
                raise TypeError("labels are text on some ranks and numbers on others")
            if len(np.unique(np.concatenate(every))) < 2:
                raise ValueError(f"a metric needs 2 classes, got one class: all samples are {every[0][0]!s}")
        return indices

    def _metric(self, ranks: Ranks, x: Any, *, fresh: bool) -> Metric:
        """Return a metric, its components those to start from if there are any, else 0; collective.

        Raises:
            ValueError: Components do not fit the features or each other; on every rank.
        """
        features, given = x.shape[1], self.init if isinstance(self.init, np.ndarray) else None
        if self.warm_start or not fresh:
            before = ranks.first(getattr(self, "components_", None))  # ranks may hold different models
            given = given if before is None else before
        with ranks.together("fit"):
            rows = self.n_components or (min(features, _COMPONENTS) if given is None else len(given))
            if rows > features:
                raise ValueError(f"n_components must be at most the {features} features, got {rows}")
            if given is not None and (given.shape != (rows, features) or not np.isfinite(given).all()):
                raise ValueError(
                    f"init and warm_start need finite components of shape {rows}×{features}, got {given.shape}"
                )
            if given is not None and not given.any():
                raise ValueError("init and warm_start need components that are not all 0")
        metric = Metric(
            features,
            components=rows,
            dissimilar_weight=float(self.dissimilar_weight),
            candidates=int(self.n_candidates),
            dtype=x.dtype,
        )
        if given is not None:
            metric.components[:] = ranks.first(given)
        return metric

    def _initialise(
        self, ranks: Ranks, x: Any, metric: Metric, source: Labelled | Given, seed: int, rng: np.random.Generator
    ) -> None:
        """Set the components as ``init`` says, so that dissimilar pairs are at distance 1 on average; collective."""
        first = metric.components
        if self.init == "pca":
            directions, _ = principal(ranks, x, len(first), seed, centred=True)
            first[: len(directions)] = directions
        elif self.init == "identity":
            np.fill_diagonal(first, 1)
        else:
            first[:] = np.random.RandomState(seed).standard_normal(first.shape)
        square, count = np.zeros(1), 0
        for low in range(0, len(rows := source.examples(rng)), _BLOCK):
            pairs, similar = source.pairs(rows[low : low + _BLOCK])
            pairs = pairs[~similar]
            projected = (dense(x, pairs[:, 0]) - dense(x, pairs[:, 1])) @ first.T
            square += np.sum(np.square(projected, dtype=np.float64))
            count += len(pairs)
        square, count = ranks.sum(np.append(square, count))
        if square > 0:
            first *= np.sqrt(count / square)

    def _descend(
        self, ranks: Ranks, x: Any, metric: Metric, source: Labelled | Given, epochs: int, *, fresh: bool
    ) -> None:
        """Train on the pairs of all ranks until their loss improves no more; collective.

        Args:
            ranks: The ranks.
            x: Samples of this rank.
            metric: The metric, as `_metric` returns it.
            source: Where pairs come from.
            epochs: Most epochs.
            fresh: Whether this is a new fit, not the next part of one.
        """
        seed = seed_of(ranks, self.random_state)
        rng = np.random.default_rng([seed, ranks.rank, 0 if fresh else ranks.first(self.n_iter_)])
        if not ranks.first(bool(metric.components.any())):
            self._initialise(ranks, x, metric, source, seed, rng)
        unit = ranks.first(float(np.sqrt(np.mean(np.square(metric.components, dtype=np.float64)))) or 1.0)
        if fresh:
            metric.parameters[0].array = place(ranks, metric.components)
        rule = self._rule(unit).bind(metric.components)
        if not fresh:
            rule.steps, moments = ranks.first(self._moments)
            for name, moment in zip(rule.states, moments, strict=True):
                setattr(rule, name, moment)
        best, stale = np.inf, 0
        self.loss_curve_ = [] if fresh else self.loss_curve_
        for _ in range(epochs):
            self.loss_ = self._epoch(ranks, x, metric, source, rule, rng)
            self.loss_curve_.append(self.loss_)
            stale = stale + 1 if self.loss_ > best - self.tol else 0
            best = min(best, self.loss_)
            if stale >= self.n_iter_no_change:
                break
        self.n_iter_ = len(self.loss_curve_)
        self.components_ = np.array(metric.components)
        moments = [getattr(rule, name) for name in rule.states]
        self._moments = rule.steps, [None if moment is None else np.array(moment) for moment in moments]

    def _epoch(
        self,
        ranks: Ranks,
        x: Any,
        metric: Metric,
        source: Labelled | Given,
        rule: sfb.optim.Optimizer,
        rng: np.random.Generator,
    ) -> float:
        """Train once on the examples of all ranks, and return their mean loss; collective.

        Raises:
            ValueError: There is no dissimilar pair, or the loss is not finite; on every rank.
        """
        rows = source.examples(rng)
        sizes, differ = zip(*ranks.gather((len(rows), source.differ(rows))), strict=True)
        if not sum(differ):
            raise ValueError(
                "all pairs are similar, so all samples would become one point: each rank draws pairs among its own "
                "samples, which must be of several classes on some rank; fit_pairs needs dissimilar pairs, too"
            )
        loss = np.zeros(1)
        order = rng.permutation(len(rows)) if self.shuffle else np.arange(len(rows))
        for mine, count in batches(order, sizes, int(self.batch_size)):
            value, factors = metric.of_pairs(x, *source.pairs(rows[mine]), count)
            loss += value
            take(ranks, factors, rule)
        mean = float(ranks.sum(loss)[0]) / sum(sizes)
        if not np.isfinite(mean):  # the same on all ranks
            raise ValueError(f"the loss is {mean}: lower learning_rate_init, or scale the features")
        return mean

    def _rule(self, unit: float) -> sfb.optim.Optimizer:
        """Return the rule whose steps are those for components of root mean square 1, for another root mean square."""
        rate = float(self.learning_rate_init)
        if self.solver == "sgd":
            return sfb.optim.SGD(lr=rate * unit**2, momentum=self.momentum)
        if self.solver == "adagrad":
            return sfb.optim.Adagrad(lr=rate * unit, eps=1e-10 / unit)
        return sfb.optim.Adam(lr=rate * unit, eps=1e-8 / unit)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.n_components is not None:
            Number(1, whole=True).check("n_components", self.n_components)
        if not isinstance(self.init, np.ndarray) and self.init not in ("pca", "identity", "random"):
            raise ValueError(f"init must be pca, identity, random or an array, got {self.init!r}")
        if isinstance(self.init, np.ndarray) and self.init.ndim != 2:
            raise ValueError(f"init must have 2 dimensions, got {self.init.ndim}")
