"""Linear classifiers, data-parallel."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array, hstack, issparse
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

import sfb
from sfb.kernels.stages import compiled
from sfb.models.estimator import Classifier, Number, Shard
from sfb.models.losses import cross_entropy
from sfb.models.ranks import Ranks

__all__ = ["LinearSVC", "LogisticRegression"]

# Samples of a rank between two exchanges of LinearSVC.
_SAMPLES = 256


class _Linear(Classifier):
    """A classifier by linear scores."""

    coef_: np.ndarray
    intercept_: np.ndarray

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        return {
            "kind": "linear",
            "model": type(self).__name__,
            "out_activation": self._link(),
            "coef": self.coef_,
            "intercept": self.intercept_,
            "classes": self.classes_,
        }

    def _link(self) -> str:
        """Return how scores become probabilities: logistic, softmax, or identity for not at all."""
        return "identity"

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of local samples, N×K, or N for two classes."""
        x = self._rows(X)
        scores = np.asarray(x @ self.coef_.T) + self.intercept_
        return scores.ravel() if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels of local samples, N×D features."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)]


class LogisticRegression(_Linear):
    """Multinomial logistic regression, of which every rank fits its shard of the samples.

    Minimises C·Σ wᵢ·loss(xᵢ, yᵢ) + ½(1 − r)·‖W‖² + r·‖W‖₁ over the samples of all ranks, r for ``l1_ratio``, as
    `sklearn.linear_model.LogisticRegression` does. The intercept is not penalised. Two classes have one row of
    coefficients.

    L-BFGS (Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16(5), 1995) runs on every rank in the same steps; the ranks
    sum the loss and its gradient. An L1 penalty splits each coefficient into its positive and its negative part.

    Args:
        C: Weight of the loss against the penalty, > 0; `numpy.inf` for no penalty.
        l1_ratio: Part of the L1 penalty, 0 to 1.
        tol: Largest element of the projected gradient at which the solver stops, > 0.
        fit_intercept: Whether to fit an intercept.
        class_weight: Weights of classes by label, "balanced" for the same total weight of each class, or None.
        max_iter: Most iterations of the solver, ≥ 0.
        warm_start: Whether `fit` starts from the coefficients that there are.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        coef_: Coefficients, K×D, or 1×D for two classes; the same bits on all ranks.
        intercept_: Intercepts, K, or 1 for two classes.
        classes_: Labels that occur on any rank, in ascending order.
        n_features_in_: Number of features D.
        n_iter_: Iterations of the solver, an array of one element.

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
        "max_iter": Number(0, whole=True),
    }

    def __init__(
        self,
        C: float = 1.0,
        *,
        l1_ratio: float = 0.0,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: Any = None,
        max_iter: int = 100,
        warm_start: bool = False,
        comm: Any = None,
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.comm = comm

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
            start = np.zeros((rows, self.n_features_in_ + self.fit_intercept))
            before = getattr(self, "coef_", None) if self.warm_start else None
            with ranks.together("fit"):
                if before is not None:
                    if before.shape != (rows, self.n_features_in_):
                        raise ValueError(f"warm_start needs coef_ of shape {start.shape}, got {before.shape}")
                    start[:, : self.n_features_in_] = before
                    if self.fit_intercept:
                        start[:, -1] = self.intercept_
            if self.warm_start:  # ranks may hold different models
                start = ranks.first(start)
            found, iterations = self._minimise(ranks, shard, start)
        features = self.n_features_in_
        self.coef_ = np.ascontiguousarray(found[:, :features], shard.x.dtype)
        intercepts = found[:, features] if self.fit_intercept else np.zeros(rows)
        self.intercept_ = intercepts.astype(shard.x.dtype)
        self.n_iter_ = np.array([iterations], np.int32)
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

    def _minimise(self, ranks: Ranks, shard: Shard, start: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the coefficients, intercepts in the last column, and the number of iterations; collective."""
        loss = self._loss(ranks, shard, start.shape)
        strength = 1 / (self.C * shard.total)
        l1, l2 = strength * self.l1_ratio, strength * (1 - self.l1_ratio)
        penalised = np.ones_like(start)
        if self.fit_intercept:
            penalised[:, -1] = 0
        penalised = penalised.ravel()

        def smooth(w: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = loss(w)
            shrunk = penalised * w
            return value + 0.5 * l2 * float(shrunk @ w), gradient + l2 * shrunk

        def split(parts: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = smooth(parts[: start.size] - parts[start.size :])
            return (
                value + l1 * float(penalised @ (parts[: start.size] + parts[start.size :])),
                np.concatenate([gradient + l1 * penalised, -gradient + l1 * penalised]),
            )

        w = start.ravel()
        problem: dict[str, Any] = {"fun": smooth, "x0": w}
        if l1:
            both = np.concatenate([np.maximum(w, 0), np.maximum(-w, 0)])
            problem = {"fun": split, "x0": both, "bounds": [(0, None)] * both.size}
        options = {"maxiter": self.max_iter, "gtol": self.tol, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
        result = minimize(**problem, method="L-BFGS-B", jac=True, options=options)
        if result.nit >= self.max_iter and ranks.rank == 0:
            warnings.warn(
                f"the solver stopped at max_iter={self.max_iter} iterations: scale the features, or raise max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )
        found = result.x[: start.size] - result.x[start.size :] if l1 else result.x
        return found.reshape(start.shape), int(result.nit)

    def _loss(
        self, ranks: Ranks, shard: Shard, shape: tuple[int, int]
    ) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        """Return a function that gives the mean loss of all ranks and its gradient; collective."""
        x, y, weights = shard.x, shard.y, shard.weights[:, np.newaxis]
        sums = np.empty(1 + shape[0] * shape[1])
        features = self.n_features_in_

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            rows = w.reshape(shape).astype(x.dtype, copy=False)
            scores = np.asarray(x @ rows[:, :features].T)
            if self.fit_intercept:
                scores += rows[:, -1]
            losses, error = cross_entropy(scores, y)
            error *= weights
            sums[0] = np.sum(losses * shard.weights, dtype=np.float64)
            gradient = sums[1:].reshape(shape)
            gradient[:, :features] = (x.T @ error).T if issparse(x) else error.T @ x
            if self.fit_intercept:
                gradient[:, -1] = error.sum(axis=0)
            total = ranks.sum(sums) / shard.total
            return float(total[0]), total[1:]

        return loss


class LinearSVC(_Linear):
    """Linear support vector machine for several classes, of which every rank fits its shard of the samples.

    Minimises ½‖W‖² + C·Σ wᵢ·max over k of (1[k ≠ yᵢ] + w_k·xᵢ − w_yᵢ·xᵢ) over the samples of all ranks, as
    `sklearn.svm.LinearSVC` does with ``multi_class="crammer_singer"``: stochastic dual coordinate ascent
    (`sfb.kernels.coordinates`), whose changes the ranks exchange as factors (Xie et al., "Lighter-Communication
    Distributed Machine Learning via Sufficient Factor Broadcasting", UAI 2016, section 3). Two classes have one row of
    coefficients.

    Args:
        C: Weight of the loss against the penalty, > 0.
        tol: Largest gap between the objective and its dual, relative to the objective, at which the solver stops, > 0.
        fit_intercept: Whether to fit an intercept, as the coefficient of a constant feature; it is penalised.
        intercept_scaling: The value of that feature, > 0.
        class_weight: Weights of classes by label, "balanced" for the same total weight of each class, or None.
        random_state: Seed of the order of samples.
        max_iter: Most passes over the samples, ≥ 1.
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
        random_state: Any = None,
        max_iter: int = 1000,
        comm: Any = None,
    ) -> None:
        self.C = C
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.max_iter = max_iter
        self.comm = comm

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
            x = csr_array(shard.x)
            if self.fit_intercept:
                constant = np.full((x.shape[0], 1), self.intercept_scaling, x.dtype)
                x = hstack([x, csr_array(constant)], format="csr")
            w = self._ascend(ranks, x, shard)
        if len(self.classes_) == 2:
            w = w[:, 1:] - w[:, :1]
        self.coef_ = np.ascontiguousarray(w[: self.n_features_in_].T)
        self.intercept_ = w[-1] * self.intercept_scaling if self.fit_intercept else np.zeros(w.shape[1], w.dtype)
        return self

    def _ascend(self, ranks: Ranks, x: Any, shard: Shard) -> np.ndarray:
        """Return the coefficients, D×K; collective."""
        (samples, features), classes, dtype = x.shape, len(self.classes_), x.dtype
        costs = (self.C * shard.weights).astype(dtype)
        squares = np.asarray(x.multiply(x).sum(axis=1), dtype).ravel()
        with ranks.together("fit"):
            rng = check_random_state(self.random_state)
            step = compiled("coordinates").multiclass_hinge
        rows = x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64), shard.y
        alpha = np.zeros((samples, classes), dtype)
        w = np.zeros((features, classes), dtype)
        total = sfb.optim.SGD(w, lr=1.0)
        own = w if ranks.comm is None else np.zeros_like(w)  # as this rank sees it between exchanges
        rounds = -(-max(ranks.gather(samples)) // _SAMPLES)
        for passes in range(1, self.max_iter + 1):
            for order in np.array_split(rng.permutation(samples).astype(np.int64), rounds):
                change = np.empty((len(order), classes), dtype)
                step(*rows, costs, squares, alpha, own, order, float(ranks.size), change)
                if ranks.comm is not None:
                    ranks.comm.Allreduce(sfb.Factors(x[order].toarray(), -change), total)
                    np.copyto(own, w)
            self.n_iter_, self.dual_gap_ = passes, self._gap(ranks, x, shard.y, costs, alpha, w)
            if self.dual_gap_ <= self.tol:
                return w
        if ranks.rank == 0:
            warnings.warn(
                f"the solver stopped at max_iter={self.max_iter} passes, {self.dual_gap_:.1e} from the optimum: scale "
                "the features, lower C, or raise max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )
        return w

    @staticmethod
    def _gap(ranks: Ranks, x: Any, y: np.ndarray, costs: np.ndarray, alpha: np.ndarray, w: np.ndarray) -> float:
        """Return the gap between the objective and its dual, relative to the objective; collective."""
        scores, picked = np.asarray(x @ w), (np.arange(len(y)), y)
        margins = scores - scores[picked][:, np.newaxis] + 1
        margins[picked] = 0
        loss = np.sum(costs * margins.max(axis=1, initial=0), dtype=np.float64)
        # Σ over k ≠ y of α = −α[y], as the variables of a sample sum to 0.
        sums = ranks.sum(np.array([loss, np.sum(alpha[picked], dtype=np.float64)]))
        square = float(np.vdot(w, w))
        primal, dual = 0.5 * square + sums[0], sums[1] - 0.5 * square
        return float((primal - dual) / primal) if primal > 0 else 0.0
