"""Multinomial logistic regression, data-parallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.utils import check_random_state

import sfb
from sfb.models.estimator import Number, Shard
from sfb.models.linear import lbfgs
from sfb.models.linear.ascent import Entropy
from sfb.models.linear.classifier import Linear, arrays_of
from sfb.models.ranks import Ranks

__all__ = ["LogisticRegression"]

# Nesterov's momentum of "sgd" without an L1 penalty.
_MOMENTUM = 0.9
# How often "sgd" halves its learning rate before it stops.
_HALVINGS = 6


class LogisticRegression(Linear):
    """Multinomial logistic regression, of which every rank fits its shard of the samples.

    Minimises C·Σ wᵢ·loss(xᵢ, yᵢ) + ½(1 − r)·‖W‖² + r·‖W‖₁ over the samples of all ranks, r for ``l1_ratio``, as
    `sklearn.linear_model.LogisticRegression` does. The intercept is not penalised. Two classes have one row of
    coefficients.

    Solvers:

    - "lbfgs" reaches the optimum: every rank takes the same steps of L-BFGS, and the ranks sum a gradient of K·D
      numbers in each (`sfb.models.linear.lbfgs`).
    - "sgd" takes steps with mini-batches of all ranks, whose gradients travel as factors, S·(K + D) numbers: for many
      classes and features. Steps have Nesterov's momentum; with an L1 penalty they are proximal (Parikh and Boyd,
      "Proximal Algorithms", 2014, section 4.2). The first learning rate follows from the samples, and halves after each
      pass that improves the mean loss by less than ``tol``.
    - "sdca" raises the dual sample by sample, and the ranks exchange changes of dual variables and samples as factors
      (`sfb.models.linear.ascent`); it knows how far the optimum is. It takes the L2 penalty alone.

    Args:
        C: Weight of the loss against the penalty, > 0; `numpy.inf` for no penalty.
        l1_ratio: Part of the L1 penalty, 0 to 1.
        solver: "lbfgs", "sgd" or "sdca".
        tol: > 0. Of "lbfgs", the largest element of the projected gradient at which it stops; of "sgd", the least
            improvement of the mean loss in a pass that keeps its learning rate, of which there are 6 halvings; of
            "sdca", the largest gap between the objective and its dual, relative to the objective.
        fit_intercept: Whether to fit an intercept.
        class_weight: Weights of classes by label, "balanced" for the same total weight of each class, or None.
        batch_size: Samples of a step of "sgd" and `partial_fit`, of all ranks together, ≥ 1.
        random_state: Seed of the order of samples of "sgd" and "sdca".
        max_iter: Most iterations of "lbfgs", or passes over the samples, ≥ 0.
        warm_start: Whether `fit` starts from the coefficients that there are; "sdca" from its dual variables, on ranks
            that have as many samples as before.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        coef_: Coefficients, K×D, or 1×D for two classes; the same bits on all ranks.
        intercept_: Intercepts, K, or 1 for two classes.
        classes_: Labels that occur on any rank, in ascending order.
        n_features_in_: Number of features D.
        n_iter_: Iterations of the solver, or passes, an array of one element.
        dual_gap_: Of "sdca", the gap between the objective and its dual at the end, relative to the objective.

    >>> import numpy as np
    >>> from sfb.models import LogisticRegression
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["no", "no", "yes", "yes"])
    >>> LogisticRegression().fit(X, y).predict([[0.5], [2.5]])
    array(['no', 'yes'], dtype='<U3')
    """

    numbers: ClassVar = {
        "C": Number(0, above=True),
        "l1_ratio": Number(0, 1),
        "tol": Number(0, above=True),
        "batch_size": Number(1, whole=True),
        "max_iter": Number(0, whole=True),
    }
    choices: ClassVar = {"solver": ("lbfgs", "sgd", "sdca")}

    def __init__(
        self,
        C: float = 1.0,
        *,
        l1_ratio: float = 0.0,
        solver: str = "lbfgs",
        tol: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: Any = None,
        batch_size: int = 64,
        random_state: Any = None,
        max_iter: int = 100,
        warm_start: bool = False,
        comm: Any = None,
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.solver = solver
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.batch_size = batch_size
        self.random_state = random_state
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.comm = comm

    def __getstate__(self) -> dict[str, Any]:
        # A copy may go elsewhere; the dual variables belong to the samples of this rank.
        return {name: value for name, value in super().__getstate__().items() if name != "_dual"}

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticRegression:
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
            rows = 1 if len(self.classes_) == 2 else len(self.classes_)
            shape = rows, self.n_features_in_
            coef, intercept = np.zeros(shape), np.zeros(rows)
            if self.warm_start:
                coef, intercept = self._present(ranks, shape)
            solve = {"lbfgs": self._lbfgs, "sgd": self._sgd, "sdca": self._sdca}[self.solver]
            coef, intercept, iterations = solve(ranks, shard, coef, intercept)
        self.coef_ = np.ascontiguousarray(coef, shard.x.dtype)
        self.intercept_ = np.ascontiguousarray(intercept, shard.x.dtype)
        self.n_iter_ = np.array([iterations], np.int32)
        self._fitted(shard)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> LogisticRegression:
        """Take one pass of gradient descent over a part of a stream of samples; collective.

        The solver is "sgd", whatever ``solver`` says, and takes the samples in their order. The objective is that of
        `fit` for all samples so far.

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
            start = self._present(ranks, (rows, self.n_features_in_))
            self.coef_, self.intercept_ = self._go_on(ranks, shard, "cross-entropy", *start, self.l1_ratio)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class for local samples, N×K."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([expit(-scores), expit(scores)])
        return softmax(scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of `predict_proba`, N×K."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([log_expit(-scores), log_expit(scores)])
        return log_softmax(scores, axis=1)

    def _link(self) -> str:
        return "logistic" if len(self.classes_) == 2 else "softmax"

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.solver == "sdca" and (self.l1_ratio or np.isinf(self.C)):
            raise ValueError(
                f"solver 'sdca' takes the L2 penalty alone, got l1_ratio={self.l1_ratio} and C={self.C}: take 'lbfgs' "
                "or 'sgd'"
            )

    def _lbfgs(
        self, ranks: Ranks, shard: Shard, coef: np.ndarray, intercept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        strength = 1 / (self.C * shard.total)
        start = np.column_stack([coef, intercept]) if self.fit_intercept else coef
        found, iterations = lbfgs.fit(
            ranks,
            shard,
            start.astype(np.float64),
            intercept=self.fit_intercept,
            l1=strength * self.l1_ratio,
            l2=strength * (1 - self.l1_ratio),
            tol=self.tol,
            max_iter=self.max_iter,
        )
        if iterations >= self.max_iter:
            self._warn(ranks, "iterations", "scale the features, or raise max_iter")
        if self.fit_intercept:
            return found[:, :-1], found[:, -1], iterations
        return found, np.zeros(len(found)), iterations

    def _sgd(
        self, ranks: Ranks, shard: Shard, coef: np.ndarray, intercept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        with ranks.together("fit"):
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        rng = np.random.RandomState([ranks.first(seed), ranks.rank])
        strength = 1 / (self.C * shard.total)
        rate = 2 / self._curvature(ranks, shard)
        if self.l1_ratio:
            rule: sfb.optim.Optimizer = sfb.optim.Proximal(lr=0.0)
            penalty = {"l1": strength * self.l1_ratio, "l2": strength * (1 - self.l1_ratio)}
        else:
            rule, penalty = sfb.optim.SGD(lr=0.0, momentum=_MOMENTUM, nesterov=True), {"weight_decay": strength}
            rate /= 2
        descent = self._descent(ranks, shard, "cross-entropy", coef, intercept, rule)
        best, passes, least = np.inf, 0, rate / 2**_HALVINGS
        while passes < self.max_iter and rate > least:
            total, _ = self._pass(ranks, descent, shard, rng.permutation(len(shard.y)), _constant(rate), penalty)
            passes += 1
            if total / shard.total > best - self.tol:
                rate /= 2
            best = min(best, total / shard.total)
        if rate > least:
            self._warn(ranks, "passes", "scale the features, raise max_iter or tol, or take another solver")
        return *arrays_of(descent), passes

    def _sdca(
        self, ranks: Ranks, shard: Shard, coef: np.ndarray, intercept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        two = len(self.classes_) == 2
        # Of two opposite rows ±w/2, ½‖W‖² is half the penalty of w.
        costs = np.full(len(shard.y), self.C / (1 + two)) * (1 if shard.weights is None else shard.weights)
        ascent = Entropy(
            ranks,
            shard.x,
            shard.y,
            costs,
            len(self.classes_),
            # About as large as the other features together.
            constant=np.sqrt(self._curvature(ranks, shard)) if self.fit_intercept else 0.0,
            seed=self.random_state,
            dual=getattr(self, "_dual", None) if self.warm_start else None,
        )
        ascent.start_at(np.array([-0.5, 0.5]) * intercept if two else intercept)
        if not ascent.run(self.tol, self.max_iter):
            self._warn(
                ranks,
                "passes",
                f"it is {ascent.gap:.1e} from the optimum; scale the features, lower C, or raise max_iter",
            )
        if self.warm_start:
            self._dual = ascent.dual
        self.dual_gap_ = ascent.gap
        found, shift = ascent.coef, ascent.intercept
        if two:
            found, shift = found[1:] - found[:1], shift[1:] - shift[:1]
        return found, shift, ascent.passes


def _constant(rate: float) -> Callable[[int], float]:
    """Return a schedule that stays at a learning rate."""
    return lambda step: rate
