"""Linear support vector machine for several classes, data-parallel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array, hstack, issparse

from sfb.models.estimator import Number
from sfb.models.linear.ascent import Hinge
from sfb.models.linear.classifier import Linear
from sfb.models.ranks import Ranks

__all__ = ["LinearSVC"]


class LinearSVC(Linear):
    """Linear support vector machine for several classes, of which every rank fits its shard of the samples.

    Minimises ½‖W‖² + C·Σ wᵢ·max over k of (1[k ≠ yᵢ] + w_k·xᵢ − w_yᵢ·xᵢ) over the samples of all ranks, as
    `sklearn.svm.LinearSVC` does with ``multi_class="crammer_singer"``: stochastic dual coordinate ascent, whose changes
    the ranks exchange as factors (`sfb.models.linear.ascent`). Two classes have one row of coefficients.

    Args:
        C: Weight of the loss against the penalty, > 0.
        tol: Largest gap between the objective and its dual, relative to the objective, at which the solver stops, > 0.
        fit_intercept: Whether to fit an intercept, as the coefficient of a constant feature; it is penalised.
        intercept_scaling: The value of that feature, > 0.
        class_weight: Weights of classes by label, "balanced" for the same total weight of each class, or None.
        batch_size: Samples of a step of `partial_fit`, of all ranks together, ≥ 1.
        random_state: Seed of the order of samples.
        max_iter: Most passes over the samples, ≥ 1.
        warm_start: Whether `fit` starts from the dual variables of the fit before, on ranks that have as many samples.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        coef_: Coefficients, K×D, or 1×D for two classes; the same bits on all ranks.
        intercept_: Intercepts, K, or 1 for two classes.
        classes_: Labels that occur on any rank, in ascending order.
        n_features_in_: Number of features D.
        n_iter_: Number of passes over the samples.
        dual_gap_: The gap between the objective and its dual at the end, relative to the objective.

    >>> import numpy as np
    >>> from sfb.models import LinearSVC
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["no", "no", "yes", "yes"])
    >>> LinearSVC(C=10).fit(X, y).predict([[0.5], [2.5]])
    array(['no', 'yes'], dtype='<U3')
    """

    numbers: ClassVar = {
        "C": Number(0, above=True),
        "tol": Number(0, above=True),
        "intercept_scaling": Number(0, above=True),
        "batch_size": Number(1, whole=True),
        "max_iter": Number(1, whole=True),
    }

    def __init__(
        self,
        C: float = 1.0,
        *,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        class_weight: Any = None,
        batch_size: int = 64,
        random_state: Any = None,
        max_iter: int = 1000,
        warm_start: bool = False,
        comm: Any = None,
    ) -> None:
        self.C = C
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.batch_size = batch_size
        self.random_state = random_state
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.comm = comm

    def __getstate__(self) -> dict[str, Any]:
        # A copy may go elsewhere; the dual variables belong to the samples of this rank.
        return {name: value for name, value in super().__getstate__().items() if name != "_dual"}

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LinearSVC:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N labels.
            sample_weight: N weights ≥ 0; None for 1 each.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            shard = self._shard(ranks, X, y, sample_weight)
            ascent = Hinge(
                ranks,
                shard.x,
                shard.y,
                np.full(len(shard.y), self.C) * (1 if shard.weights is None else shard.weights),
                len(self.classes_),
                constant=self.intercept_scaling if self.fit_intercept else 0.0,
                seed=self.random_state,
                dual=getattr(self, "_dual", None) if self.warm_start else None,
            )
            if not ascent.run(self.tol, self.max_iter):
                what = f"it is {ascent.gap:.1e} from the optimum; scale the features, lower C, or raise max_iter"
                self._warn(ranks, "passes", what)
        if self.warm_start:
            self._dual = ascent.dual
        self.n_iter_, self.dual_gap_ = ascent.passes, ascent.gap
        self._take(ascent.coef, ascent.intercept)
        self._fitted(shard)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> LinearSVC:
        """Take one pass of subgradient descent over a part of a stream of samples; collective.

        Dual coordinate ascent needs the dual variables of all samples, so streams take subgradients of mini-batches
        (Shalev-Shwartz, Singer, Srebro and Cotter, "Pegasos", Mathematical Programming 127, 2011, section 2.2), which
        travel as factors. The objective is that of `fit` for all samples so far.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N labels.
            classes: All labels that will ever occur; needed in the first call.
            sample_weight: N weights ≥ 0; None for 1 each.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks, "partial_fit")
            shard = self._part(ranks, X, y, classes, sample_weight)
            rows = 1 if len(self.classes_) == 2 else len(self.classes_)
            coef, intercept = self._present(ranks, (rows, self.n_features_in_))
            if rows == 1:  # the rows of both classes are opposite
                coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
            if self.fit_intercept:
                coef = np.column_stack([coef, intercept / self.intercept_scaling])
                constant = np.full((len(shard.y), 1), self.intercept_scaling, shard.x.dtype)
                sparse = issparse(shard.x)
                x = hstack([shard.x, csr_array(constant)], "csr") if sparse else np.hstack([shard.x, constant])
                shard = replace(shard, x=x)
            coef, intercept = self._go_on(ranks, shard, "hinge", coef, np.zeros(len(coef), coef.dtype))
        features = self.n_features_in_
        if self.fit_intercept:
            intercept = coef[:, -1] * coef.dtype.type(self.intercept_scaling)
        self._take(coef[:, :features], intercept)
        return self

    def _take(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        """Keep a row of coefficients for each class, or their difference for two."""
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = np.ascontiguousarray(coef), intercept
