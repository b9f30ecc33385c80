"""Matrix factorization of ratings and of implicit feedback, each rank with the ratings of its users."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sfb.models.compiling import load
from sfb.models.estimator import Estimator, Number
from sfb.models.finite import naming_samples
from sfb.models.ranks import Ranks
from sfb.models.ratings.alternating import Alternating, Problem, solve
from sfb.models.ratings.descent import Descent
from sfb.models.ratings.epochs import Progress
from sfb.models.ratings.ratings import Ratings, read, select

__all__ = ["MatrixFactorization"]

_MOST = 2**31 - 1


class MatrixFactorization(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    """Factors of users and items, of which every rank fits the ratings of its users.

    Explicit ratings are predicted as r̂ᵤᵢ = μ + bᵤ + cᵢ + pᵤ·qᵢ, where μ is the mean of all ratings. Minimised is the
    sum of (rᵤᵢ − r̂ᵤᵢ)² over the ratings of all ranks, plus λ times the sum of nᵤ·(‖pᵤ‖² + bᵤ²) over users and of
    nᵢ·(‖qᵢ‖² + cᵢ²) over items, λ for ``regularization``. The n are numbers of ratings (Zhou et al., "Large-Scale
    Parallel Collaborative Filtering for the Netflix Prize", AAIM 2008), or 1 with ``weighted=False``.

    Implicit feedback, such as counts of views, is predicted as pᵤ·qᵢ. Minimised is the sum of (1 + α·rᵤᵢ)·(1[rᵤᵢ > 0] −
    pᵤ·qᵢ)² over all pairs of user and item, plus the penalty (Hu, Koren and Volinsky, "Collaborative Filtering for
    Implicit Feedback Datasets", ICDM 2008), α for ``confidence``.

    "als" solves for all users, then for all items, and so on; each rank for its users, and for a share of the items.
    "sgd" takes a gradient step for each rating; blocks of items rotate among the ranks (Gemulla et al., KDD 2011). The
    same seed gives the same factors with "als" up to rounding for any number of ranks, with "sgd" for the same number,
    unless ``extra_passes`` is above 0. Users and items without ratings have factors and biases 0.

    Args:
        n_components: Factors K, ≥ 1.
        feedback: "explicit" or "implicit".
        solver: "als" or "sgd"; "sgd" takes explicit ratings only.
        regularization: λ, > 0.
        weighted: Whether λ is multiplied by the number of ratings.
        biases: Whether explicit ratings have μ, bᵤ and cᵢ.
        confidence: α, > 0.
        subproblem: How "als" solves for a user or an item: "cholesky", exactly, or "cg", by steps of conjugate
            gradients from the last solution.
        cg_steps: Steps of "cg", ≥ 1.
        learning_rate: Length of the first steps of "sgd" times the standard deviation of the ratings, > 0; it then
            adapts.
        max_iter: Most epochs, ≥ 0.
        tol: The relative decrease of the objective at which epochs end, ≥ 0; with 0 all epochs are made, and "als" does
            not compute the objective.
        early_stopping: Whether to hold out ratings, and to end when their error no longer falls; explicit ratings only.
        validation_fraction: Part of each rank's ratings to hold out, between 0 and 1.
        n_iter_no_change: Epochs without a lower error of the ratings held out after which to end, ≥ 1; with
            ``extra_passes`` and none held out, without a lower objective.
        rating_range: Least and largest rating, for checks and predictions; None for any.
        duplicates: What becomes of several ratings of a user for an item: "error", "mean", "sum" or "last".
        blocks_per_rank: Blocks of items for each rank with "sgd"; with two or more they travel while ranks work.
        extra_passes: Most further passes over a block that a rank makes with "sgd" while slower ranks are not done.
        debug: Whether to check that each block is on one rank at a time.
        random_state: Seed, or generator, of rank 0.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        user_factors_: Factors of this rank's users, N×K.
        item_factors_: Factors of all items, M×K; the same bits on all ranks.
        user_biases_: bᵤ of this rank's users, N; 0 for implicit feedback.
        item_biases_: cᵢ of all items, M; 0 for implicit feedback.
        mean_: μ; 0 for implicit feedback.
        n_features_in_: Number of items M.
        n_iter_: Epochs made.
        objective_: The objective after the last epoch; None where it was not computed.
        validation_scores_: RMSE of the ratings held out after each epoch, if ``early_stopping``.
        extra_passes_: Further passes over blocks that this rank has made.

    >>> import numpy as np
    >>> from sfb.models import MatrixFactorization
    >>> users, items, ratings = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0]), np.array([5.0, 3, 4, 2, 3])
    >>> mf = MatrixFactorization(1, regularization=0.01, tol=0.01, random_state=0).fit((users, items, ratings))
    >>> mf.predict([0, 1], [0, 1]).round(1)
    array([5., 2.])
    """

    numbers: ClassVar = {
        "n_components": Number(1, whole=True),
        "regularization": Number(0, above=True),
        "confidence": Number(0, above=True),
        "cg_steps": Number(1, whole=True),
        "learning_rate": Number(0, above=True),
        "max_iter": Number(0, whole=True),
        "tol": Number(0),
        "validation_fraction": Number(0, 1, above=True),
        "n_iter_no_change": Number(1, whole=True),
        "blocks_per_rank": Number(1, whole=True),
        "extra_passes": Number(0, whole=True),
    }
    choices: ClassVar = {
        "feedback": ("explicit", "implicit"),
        "solver": ("als", "sgd"),
        "subproblem": ("cholesky", "cg"),
        "duplicates": ("error", "mean", "sum", "last"),
    }

    user_factors_: np.ndarray
    item_factors_: np.ndarray
    user_biases_: np.ndarray
    item_biases_: np.ndarray
    mean_: float

    def __init__(
        self,
        n_components: int = 10,
        *,
        feedback: str = "explicit",
        solver: str = "als",
        regularization: float = 0.05,
        weighted: bool = True,
        biases: bool = True,
        confidence: float = 1.0,
        subproblem: str = "cholesky",
        cg_steps: int = 3,
        learning_rate: float = 0.02,
        max_iter: int = 50,
        tol: float = 1e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        rating_range: tuple[float, float] | None = None,
        duplicates: str = "error",
        blocks_per_rank: int = 1,
        extra_passes: int = 0,
        debug: bool = False,
        random_state: Any = None,
        comm: Any = None,
    ) -> None:
        self.n_components = n_components
        self.feedback = feedback
        self.solver = solver
        self.regularization = regularization
        self.weighted = weighted
        self.biases = biases
        self.confidence = confidence
        self.subproblem = subproblem
        self.cg_steps = cg_steps
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.rating_range = rating_range
        self.duplicates = duplicates
        self.blocks_per_rank = blocks_per_rank
        self.extra_passes = extra_passes
        self.debug = debug
        self.random_state = random_state
        self.comm = comm

    def fit(self, X: Any, y: Any = None) -> MatrixFactorization:
        """Fit the ratings of all ranks; collective.

        Args:
            X: The ratings of this rank's users: an N×M SciPy sparse matrix whose stored entries are ratings, zeros
                included; an array, of which every element is a rating; or a tuple of users, from 0 up on each rank,
                items and ratings. With implicit feedback zeros mean none. N may be 0 on some ranks.
            y: Ignored.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            ratings, held_out = self._divide(ranks, self._ratings(ranks, X))
            start, problem, rate, seed = self._begin(ranks, ratings)
            if self.solver == "als":
                self._alternate(ranks, ratings, held_out, problem, start)
            else:
                self._descend(ranks, ratings, held_out, problem, start, rate, seed)
        return self

    def predict(self, users: Any, items: Any) -> np.ndarray:
        """Return the predicted ratings, or preferences, of pairs of a local user and an item.

        Args:
            users: Numbers of this rank's users, broadcast against items.
            items: Numbers of items.

        Raises:
            ValueError: There is no such user or item.
        """
        check_is_fitted(self)
        users = _numbers("users", users, len(self.user_factors_))
        items = _numbers("items", items, len(self.item_factors_))
        return self._predicted(*np.broadcast_arrays(users, items))

    def recommend(self, user: Any, n: int = 10, *, exclude: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the n items with the highest predictions for a local user, or for several.

        Args:
            user: The number of a user of this rank, or several.
            n: The number of items, ≥ 1; fewer are returned where there are fewer.
            exclude: A SciPy sparse matrix of this rank's users by items, whose stored entries are not recommended;
                usually the ratings that were fitted.

        Returns:
            Items and predictions, n, or one row for each user; predictions are −inf for items that are excluded.
        """
        check_is_fitted(self)
        Number(1, whole=True).check("n", n)
        users = np.atleast_1d(_numbers("user", user, len(self.user_factors_)))
        scores = self.user_factors_[users] @ self.item_factors_.T + self.item_biases_
        scores = self._limited(scores + (self.user_biases_[users, np.newaxis] + self.mean_))
        # Of predictions at a limit the order is that before.
        ties = self.user_factors_[users] @ self.item_factors_.T + self.item_biases_
        if exclude is not None:
            if not issparse(exclude) or exclude.shape != (len(self.user_factors_), len(self.item_factors_)):
                raise ValueError(
                    f"exclude must be a sparse matrix of shape {(len(self.user_factors_), len(self.item_factors_))}"
                )
            known = csr_matrix(exclude)[users]
            rows = np.repeat(np.arange(len(users)), np.diff(known.indptr))
            scores[rows, known.indices] = ties[rows, known.indices] = -np.inf
        best = np.argsort(-ties, axis=1, kind="stable")[:, :n]
        found = np.take_along_axis(scores, best, axis=1)
        return (best[0], found[0]) if np.ndim(user) == 0 else (best, found)

    def transform(self, X: Any) -> np.ndarray:
        """Return factors of users that were not fitted, given those of items, N×K; local users.

        Args:
            X: Their ratings, as for `fit`.
        """
        check_is_fitted(self)
        ratings = self._checked(X, reset=False)
        items = self._with_biases(self.item_factors_, self.item_biases_)
        found = np.zeros((len(ratings.starts) - 1, items.shape[1]), items.dtype)
        gram = np.ascontiguousarray(items.T @ items)
        exact = self._problem(self.mean_, steps=0)
        typed = Ratings(ratings.starts, ratings.columns, ratings.values.astype(items.dtype, copy=False), ratings.width)
        solve(exact, typed, items, gram, found)
        return np.ascontiguousarray(found[:, : self.n_components])

    def rmse(self, X: Any) -> float:
        """Return the root of the mean squared error of ratings of this rank's users.

        With implicit feedback the ratings are preferences: 1 for entries above 0.

        Args:
            X: Ratings, as for `fit`; of the users that were fitted, in the same order.
        """
        check_is_fitted(self)
        ratings = self._checked(X, reset=False)
        if not len(ratings.values):
            raise ValueError("an error needs a rating")
        expected = ratings.values if self.feedback == "explicit" else np.ones(len(ratings.values))
        if len(ratings.starts) - 1 > len(self.user_factors_):
            raise ValueError(f"x has users beyond the {len(self.user_factors_)} of this rank that were fitted")
        errors = self._predicted(ratings.rows, ratings.columns) - expected
        return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))

    def score(self, X: Any, y: Any = None) -> float:
        """Return `rmse` with its sign changed: higher is better."""
        return -self.rmse(X)

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        limits = None if self.rating_range is None else [float(limit) for limit in self.rating_range]
        return {
            "kind": "factorization",
            "model": type(self).__name__,
            "user_factors": self.user_factors_,
            "item_factors": self.item_factors_,
            "user_biases": self.user_biases_,
            "item_biases": self.item_biases_,
            "mean": float(self.mean_),
            "rating_range": limits,
        }

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.feedback == "implicit" and (self.solver == "sgd" or self.early_stopping):
            raise ValueError("implicit feedback takes solver='als' and early_stopping=False")
        if self.validation_fraction == 1:
            raise ValueError("validation_fraction must be below 1, got 1")
        if self.rating_range is not None:
            limits = np.asarray(self.rating_range)
            if limits.shape != (2,) or limits.dtype.kind not in "fiu" or not limits[0] < limits[1]:
                raise ValueError(f"rating_range must be a least and a largest rating, got {self.rating_range!r}")

    def _checked(self, x: Any, *, reset: bool, least: int = 1) -> Ratings:
        """Return what a user has passed, as ratings."""
        width = None if reset else self.n_features_in_
        if not isinstance(x, tuple):
            with naming_samples(x):
                x = validate_data(
                    self,
                    x,
                    accept_sparse=["csr", "coo"],
                    dtype=[np.float64, np.float32],
                    ensure_min_samples=least,
                    reset=reset,
                )
        return read(
            x,
            duplicates=self.duplicates,
            limits=self.rating_range,
            implicit=self.feedback == "implicit",
            width=width,
        )

    def _ratings(self, ranks: Ranks, x: Any) -> Ratings:
        """Return the ratings of this rank's users, checked; collective."""
        with ranks.together("fit"):
            ratings = self._checked(x, reset=True, least=int(ranks.size == 1))
        said = ranks.gather((ratings.width, isinstance(x, tuple), len(ratings.values), ratings.values.dtype))
        width = max(width for width, _, _, _ in said)
        with ranks.together("fit"):
            if not isinstance(x, tuple) and ratings.width != width:
                raise ValueError(f"x has {ratings.width} items on this rank, and {width} on others")
            if not any(count for _, _, count, _ in said):
                raise ValueError("no rank has a rating: 0 sample(s) with a rating (minimum of 1 is required)")
        load(ranks, "factorization")
        self.n_features_in_ = width
        kind = np.result_type(*(kind for _, _, _, kind in said))
        return Ratings(ratings.starts, ratings.columns, ratings.values.astype(kind, copy=False), width)

    def _divide(self, ranks: Ranks, ratings: Ratings) -> tuple[Ratings, Ratings | None]:
        """Return the ratings to fit, and those held out, if any; collective."""
        if not self.early_stopping:
            return ratings, None
        seed = ranks.first(int(check_random_state(self.random_state).randint(_MOST)))
        drawn = np.random.default_rng([seed, ranks.rank, 1]).random(len(ratings.values)) < self.validation_fraction
        held_out = ranks.gather(int(drawn.sum()))
        left = ranks.gather(int((~drawn).sum()))
        with ranks.together("fit"):
            if not sum(held_out) or not sum(left):
                raise ValueError("early_stopping needs more ratings: none are held out, or none are left")
        return select(ratings, ~drawn), select(ratings, drawn)

    def _problem(self, mean: float, steps: int | None = None) -> Problem:
        explicit = self.feedback == "explicit"
        if steps is None:
            steps = self.cg_steps if self.subproblem == "cg" else 0
        return Problem(
            strength=float(self.regularization),
            weighted=bool(self.weighted),
            biased=bool(explicit and self.biases),
            confidence=0.0 if explicit else float(self.confidence),
            steps=steps,
            mean=mean,
        )

    def _begin(self, ranks: Ranks, ratings: Ratings) -> tuple[np.ndarray, Problem, float, int]:
        """Return factors of items, the problem, a step length, and a seed, all equal on all ranks; collective."""
        with ranks.together("fit"):
            seed = int(check_random_state(self.random_state).randint(_MOST))
        seed = ranks.first(seed)
        values = ratings.values.astype(np.float64, copy=False)
        count, total = ranks.sum(np.array([float(len(values)), values.sum()]))
        spread = float(np.sqrt(ranks.sum(np.array([np.square(values - total / count).sum()]))[0] / count))
        problem = self._problem(float(total / count) if self.feedback == "explicit" and self.biases else 0.0)
        # Products with factors of users that are drawn alike have about a quarter of the ratings' deviation.
        self._size = 0.5 * ((spread or 1.0) ** 2 / self.n_components) ** 0.25
        factors = self._size * np.random.default_rng([seed, 0]).standard_normal((ratings.width, self.n_components))
        counts = ranks.sum(np.bincount(ratings.columns, minlength=ratings.width).astype(np.int64))
        factors[counts == 0] = 0
        items = np.zeros((ratings.width, self.n_components + problem.biased), ratings.values.dtype)
        items[:, : self.n_components] = factors
        return items, problem, self.learning_rate / (spread or 1.0), seed

    def _alternate(
        self, ranks: Ranks, ratings: Ratings, held_out: Ratings | None, problem: Problem, start: np.ndarray
    ) -> None:
        """Alternate between users and items; collective."""
        als = Alternating(ranks, ratings, problem, start)
        progress = Progress(ranks, held_out, problem, self.tol, self.n_iter_no_change)
        for _ in range(self.max_iter):
            als.epoch()
            objective = als.objective() if self.tol > 0 and held_out is None else None
            if progress.ends(objective, als.users, lambda: als.items):
                break
        self._finish(ranks, progress, als.users, als.items, problem.mean)
        self.extra_passes_ = 0

    def _descend(
        self,
        ranks: Ranks,
        ratings: Ratings,
        held_out: Ratings | None,
        problem: Problem,
        start: np.ndarray,
        rate: float,
        seed: int,
    ) -> None:
        """Descend along the gradients of ratings; collective."""
        own = np.random.default_rng([seed, ranks.rank, 2])
        users = np.zeros((len(ratings.starts) - 1, start.shape[1]), start.dtype)
        users[:, : self.n_components] = self._size * own.standard_normal((len(users), self.n_components))
        users[np.diff(ratings.starts) == 0] = 0
        with Descent(
            ranks,
            ratings,
            problem,
            users,
            start,
            rate=rate,
            seed=seed,
            blocks=self.blocks_per_rank,
            passes=self.extra_passes,
            check=self.debug,
        ) as descent:
            # Further passes, of whatever number, let the objective fluctuate.
            steady = self.extra_passes == 0
            progress = Progress(ranks, held_out, problem, self.tol, self.n_iter_no_change, steady=steady)
            for _ in range(self.max_iter):
                fell = descent.epoch()
                objective = descent.objective(descent.items()) if self.tol > 0 and held_out is None and fell else None
                if progress.ends(objective, users, descent.items):
                    break
            self._finish(ranks, progress, users, descent.items(), problem.mean)
            self.extra_passes_ = descent.extra

    def _finish(self, ranks: Ranks, progress: Progress, users: np.ndarray, items: np.ndarray, mean: float) -> None:
        """Set what was found."""
        users, items = progress.best or (users, items)
        factors, biased = self.n_components, users.shape[1] > self.n_components
        self.user_factors_ = np.ascontiguousarray(users[:, :factors])
        self.item_factors_ = np.ascontiguousarray(items[:, :factors])
        self.user_biases_ = users[:, factors].copy() if biased else np.zeros(len(users), users.dtype)
        self.item_biases_ = items[:, factors].copy() if biased else np.zeros(len(items), items.dtype)
        self.mean_ = mean
        self.n_iter_, self.objective_ = progress.epochs, progress.objective
        self.validation_scores_ = progress.scores
        if not progress.ended and (self.tol > 0 or self.early_stopping) and ranks.rank == 0:
            warnings.warn(
                f"the solver stopped at max_iter={self.max_iter} epochs: raise max_iter, or tol",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _with_biases(self, factors: np.ndarray, biases: np.ndarray) -> np.ndarray:
        """Return factors, with biases in their last column where there are any."""
        if not self._problem(0.0).biased:
            return factors
        return np.ascontiguousarray(np.column_stack([factors, biases]))

    def _predicted(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        products = np.einsum("...j,...j->...", self.user_factors_[users], self.item_factors_[items])
        return self._limited(products + self.user_biases_[users] + self.item_biases_[items] + self.mean_)

    def _limited(self, predictions: np.ndarray) -> np.ndarray:
        return predictions if self.rating_range is None else np.clip(predictions, *self.rating_range)


def _numbers(name: str, numbers: Any, count: int) -> np.ndarray:
    """Return the numbers of users or items, checked."""
    found = np.asarray(numbers)
    if found.size and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= count):
        raise ValueError(f"{name} must be whole numbers from 0 to {count - 1}, got {numbers!r}")
    return found.astype(np.int64)
