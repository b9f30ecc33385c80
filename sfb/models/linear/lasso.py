"""Linear regression with an L1 penalty; features are divided among the ranks."""

from __future__ import annotations

import warnings
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d

from sfb.kernels.stages import compiled
from sfb.models.estimator import Estimator, Number
from sfb.models.finite import naming_samples
from sfb.models.linear.columns import Columns, by_features, by_samples
from sfb.models.linear.working_sets import Penalty, Solution, Solver
from sfb.models.ranks import Ranks

__all__ = ["ElasticNet", "Lasso", "lasso_path"]

_FLOATS = (np.float64, np.float32)


class _Regression(RegressorMixin, Estimator):
    """A linear regression with an L1 penalty, and perhaps an L2 penalty."""

    numbers: ClassVar[dict[str, Number]] = {
        "alpha": Number(0, above=True),
        "tol": Number(0),
        "max_iter": Number(1, whole=True),
        "max_epochs": Number(1, whole=True),
        "random_state": Number(0, whole=True),
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "split": ("samples", "features"),
        "schedule": ("replicated", "priority"),
    }

    coef_: np.ndarray
    intercept_: float

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-4,
        max_iter: int = 100,
        max_epochs: int = 50_000,
        positive: bool = False,
        warm_start: bool = False,
        split: str = "samples",
        schedule: str = "replicated",
        random_state: int = 0,
        comm: Any = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.max_epochs = max_epochs
        self.positive = positive
        self.warm_start = warm_start
        self.split = split
        self.schedule = schedule
        self.random_state = random_state
        self.comm = comm

    def fit(self, X: Any, y: Any) -> Any:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix of float32 or float64; N may
                differ between ranks and be 0. With ``split="features"``, n×d features of all samples; d may be 0.
            y: N targets; with ``split="features"`` those of all samples, the same on all ranks.

        Returns:
            This estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            columns, targets, mean, dtype = self._columns(ranks, X, y)
            solver = Solver(ranks, columns, targets, scheduled=self.schedule == "priority", seed=self.random_state)
            coef = ranks.first(getattr(self, "coef_", None)) if self.warm_start else None
            if coef is not None and coef.shape == (columns.total,):
                solver.start(coef[columns.first : columns.first + columns.count])
            weight = len(targets) * self.alpha
            ratio = self._ratio()
            penalty = Penalty(weight * ratio, weight * (1 - ratio), bool(self.positive))
            solution = solver.solve(penalty, tol=self.tol, max_iter=self.max_iter, max_epochs=self.max_epochs)
            said = ranks.gather((solver.beta, float(columns.means @ solver.beta)))
            solver.free()
            if not solution.converged and ranks.rank == 0:
                _warn(solution, stacklevel=2)
        self.coef_ = np.concatenate([beta for beta, _ in said]).astype(dtype)
        self.intercept_ = mean - sum(shift for _, shift in said) if self.fit_intercept else 0.0
        self.n_features_in_ = columns.total
        self.n_iter_, self.n_epochs_, self.n_screened_ = solution.iterations, solution.epochs, solution.screened
        self.objective_, self.dual_gap_ = solution.objective / len(targets), solution.gap / len(targets)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the predictions for local samples, N×D features."""
        x = self._rows(X)
        return np.asarray(x @ self.coef_) + x.dtype.type(self.intercept_)

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        return {
            "kind": "linear",
            "model": type(self).__name__,
            "out_activation": "identity",
            "coef": self.coef_[np.newaxis],
            "intercept": np.array([self.intercept_], self.coef_.dtype),
        }

    def _ratio(self) -> float:
        """Return the part of the L1 penalty."""
        return 1.0

    def _columns(self, ranks: Ranks, x: Any, y: Any) -> tuple[Columns, np.ndarray, float, Any]:
        """Return this rank's columns, the targets less their mean, that mean, and the dtype; collective."""
        _load_kernels(ranks)
        if self.split == "samples":
            x, y = self._arrays(ranks, x, y, y_numeric=True)
            with ranks.together("fit"):  # scikit-learn lets text pass
                y = y.astype(np.float64)
            targets, columns_of = np.concatenate(ranks.gather(y)), by_samples
        else:
            (x, targets), columns_of = _features(ranks, x, y), by_features
        mean = float(targets.mean()) if self.fit_intercept else 0.0
        mean = ranks.first(mean)  # one sum on all ranks, whatever their processors
        return columns_of(ranks, x, centred=bool(self.fit_intercept)), targets - mean, mean, x.dtype


class ElasticNet(_Regression):
    """Linear regression with L1 and L2 penalties, which ranks fit together.

    Minimises (1/(2n))·‖y − Xβ − b‖² + alpha·l1_ratio·‖β‖₁ + ½·alpha·(1 − l1_ratio)·‖β‖² over the n samples of all
    ranks, as `sklearn.linear_model.ElasticNet` does. The intercept b is not penalised.

    Each rank looks after some of the features: it computes their correlations with the residual, and drops features of
    which the duality gap proves that they are out. The ranks choose the most promising ones together, and solve the
    problem of these few by coordinate descent (`sfb.models.linear.working_sets.Solver`).

    >>> import numpy as np
    >>> from sfb.models import ElasticNet
    >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    >>> ElasticNet(alpha=0.01, tol=1e-10).fit(x, [0.0, 1.0, 2.0, 3.0]).coef_.round(3)
    array([0.992, 0.   ])

    Args:
        alpha: Weight of the penalties, > 0.
        l1_ratio: Part of the L1 penalty, > 0 and ≤ 1.
        fit_intercept: Whether to fit an intercept.
        tol: The duality gap, relative to the objective, at which the solver stops, ≥ 0.
        max_iter: Most working sets, ≥ 1.
        max_epochs: Most passes over working sets, ≥ 1.
        positive: Whether coefficients must be ≥ 0.
        warm_start: Whether `fit` starts from the coefficients of the last one, those of rank 0.
        split: What each rank passes to `fit`: "samples", some samples with all features, which the ranks then exchange
            for some features of all samples; or "features", some features of all samples, and y of all samples.
        schedule: How the ranks solve the problem of few features: "replicated", all in the same steps; or "priority",
            each updates other coefficients, which `sfb.schedule.Priority` chooses such that their features hardly
            correlate, until that converges slowly. It pays where there are many samples (docs/models/lasso.md).
        random_state: Seed of that schedule, an integer; the same on all ranks.
        comm: The ranks; see `sfb.models`.

    Attributes:
        coef_: The D coefficients, of the dtype of the features. With ``split="features"`` they are in the order of
            ranks.
        intercept_: The intercept; 0.0 without.
        dual_gap_: The duality gap, in the units of the objective: an upper bound of its distance from the least.
        objective_: The objective.
        n_iter_: The number of working sets, and the look at all features that ended the search.
        n_epochs_: The number of passes over working sets.
        n_screened_: The number of features whose coefficients were proved to be 0, constant ones among them.
        n_features_in_: The number of features D of all ranks.
    """

    numbers: ClassVar[dict[str, Number]] = {**_Regression.numbers, "l1_ratio": Number(0, 1, above=True)}

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        tol: float = 1e-4,
        max_iter: int = 100,
        max_epochs: int = 50_000,
        positive: bool = False,
        warm_start: bool = False,
        split: str = "samples",
        schedule: str = "replicated",
        random_state: int = 0,
        comm: Any = None,
    ) -> None:
        super().__init__(
            alpha,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            max_epochs=max_epochs,
            positive=positive,
            warm_start=warm_start,
            split=split,
            schedule=schedule,
            random_state=random_state,
            comm=comm,
        )
        self.l1_ratio = l1_ratio

    def _ratio(self) -> float:
        return self.l1_ratio


class Lasso(_Regression):
    """Linear regression with an L1 penalty, which ranks fit together.

    Minimises (1/(2n))·‖y − Xβ − b‖² + alpha·‖β‖₁ over the n samples of all ranks, as `sklearn.linear_model.Lasso` does.
    Arguments and attributes are those of `ElasticNet`, of which it is the case ``l1_ratio=1``.

    >>> import numpy as np
    >>> from sfb.models import Lasso
    >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    >>> Lasso(alpha=0.1, tol=1e-10).fit(x, [0.0, 1.0, 2.0, 3.0]).coef_.round(3)
    array([0.92, 0.  ])
    """


def lasso_path(
    X: Any,
    y: Any,
    *,
    eps: float = 1e-3,
    n_alphas: int = 100,
    alphas: Any = None,
    fit_intercept: bool = False,
    tol: float = 1e-4,
    max_iter: int = 100,
    positive: bool = False,
    split: str = "samples",
    comm: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coefficients of the lasso for a row of penalties, each fitted from the last; collective.

    >>> import numpy as np
    >>> from sfb.models import lasso_path
    >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    >>> alphas, coefs, gaps = lasso_path(x, [0.0, 1.0, 2.0, 3.0], n_alphas=3, eps=0.01)
    >>> alphas.round(3), coefs.round(3)
    (array([3.5  , 0.35 , 0.035]), array([[0.  , 0.9 , 0.99],
           [0.  , 0.  , 0.  ]]))

    Args:
        X: As in `Lasso.fit`.
        y: As in `Lasso.fit`.
        eps: The least alpha over the largest, > 0 and ≤ 1.
        n_alphas: The number of alphas, ≥ 1, at equal ratios; the largest is the least for which all coefficients are 0.
        alphas: The alphas, > 0; they are taken in descending order. None for ``n_alphas`` of them.
        fit_intercept: Whether to fit an intercept; as in scikit-learn it is not by default. It is the mean of y less
            the means of the features times their coefficients.
        tol: As in `Lasso`.
        max_iter: As in `Lasso`, for each alpha.
        positive: As in `Lasso`.
        split: As in `Lasso`.
        comm: As in `Lasso`.

    Returns:
        The A alphas; D×A coefficients; and A duality gaps, in the units of the objective.

    Raises:
        TypeError, ValueError: What a rank passed is wrong; on every rank.
    """
    model = Lasso(tol=tol, max_iter=max_iter, positive=positive, split=split, fit_intercept=fit_intercept, comm=comm)
    with Ranks(comm) as ranks:
        model._agree(ranks)
        with ranks.together("lasso_path"):
            Number(0, 1, above=True).check("eps", eps)
            Number(1, whole=True).check("n_alphas", n_alphas)
            if alphas is not None:
                alphas = np.sort(np.asarray(alphas, np.float64).ravel())[::-1]
                if not len(alphas) or not np.isfinite(alphas).all() or not (alphas > 0).all():
                    raise ValueError(f"alphas must be numbers > 0, got {alphas!r}")
        ranks.compare("lasso_path", f"lasso_path of {eps}, {n_alphas}, {alphas}")
        columns, targets, _, dtype = model._columns(ranks, X, y)
        solver = Solver(ranks, columns, targets)
        if alphas is None:
            largest = solver.largest() / len(targets)
            alphas = np.geomspace(1, eps, n_alphas) * largest if largest > 0 else np.full(n_alphas, np.finfo(dtype).eps)
        coefs, gaps = [], []
        for alpha in alphas:
            penalty = Penalty(len(targets) * alpha, 0.0, bool(positive))
            solution = solver.solve(penalty, tol=tol, max_iter=max_iter, max_epochs=model.max_epochs)
            coefs.append(np.concatenate(ranks.gather(solver.beta)))
            gaps.append(solution.gap / len(targets))
            if not solution.converged and ranks.rank == 0:
                _warn(solution, f"alpha={alpha:.3g}: ")
        solver.free()
    return alphas, np.stack(coefs, axis=1).astype(dtype), np.array(gaps)


def _load_kernels(ranks: Ranks) -> None:
    """Compile the kernels on rank 0, and then load them, or compile them on other nodes; collective."""
    for turn in (ranks.rank == 0, True):
        with ranks.together("fit"):
            if turn:
                compiled("lasso")


def _features(ranks: Ranks, x: Any, y: Any) -> tuple[Any, np.ndarray]:
    """Return features of all samples and their targets, checked; collective."""
    with ranks.together("fit"):
        with naming_samples(x, y):
            x = check_array(x, accept_sparse="csc", dtype=_FLOATS, ensure_min_features=0, input_name="X")
            y = check_array(y, dtype=np.float64, ensure_2d=False, input_name="y")
        y = column_or_1d(y, warn=True)
        check_consistent_length(x, y)
    said = ranks.gather((x.dtype, len(y), blake2b(y.tobytes()).digest(), x.shape[1]))
    with ranks.together("fit"):
        if len({each[1:3] for each in said}) > 1:
            raise ValueError("with split='features' all ranks must pass the same y of all samples; they differ")
        if not sum(each[3] for each in said):
            raise ValueError("no rank has a feature: found array with 0 feature(s)")
    return x.astype(np.result_type(*(kind for kind, *_ in said)), copy=False), y


def _warn(solution: Solution, what: str = "", *, stacklevel: int = 2) -> None:
    warnings.warn(
        f"{what}the solver stopped after {solution.iterations} working sets and {solution.epochs} passes, "
        f"{solution.gap / max(solution.objective, np.finfo(float).tiny):.1e} of the objective from the optimum: raise "
        "alpha, tol, max_iter or max_epochs",
        ConvergenceWarning,
        stacklevel=stacklevel + 1,
    )
