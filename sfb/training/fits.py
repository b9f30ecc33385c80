"""Runs of `sfb train lasso`, `mf` and `lda`: the ranks read data, fit an estimator, and report what it has reached."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_matrix, load_npz
from sklearn.exceptions import ConvergenceWarning

from sfb.data import read_bag_of_words, read_ratings, read_vocabulary
from sfb.environment import describe
from sfb.models.linear.lasso import ElasticNet
from sfb.models.ratings.factorization import MatrixFactorization
from sfb.models.saved.rating_file import gather
from sfb.models.topics.lda import LatentDirichletAllocation
from sfb.runtime.agreement import compare
from sfb.training.data import DataError, load
from sfb.training.model_file import save_model
from sfb.training.reading import together

__all__ = ["fit_lasso", "fit_lda", "fit_mf"]

_TOP = 10  # words of a topic


def fit_lasso(
    world: MPI.Intracomm,
    data: str,
    settings: dict[str, Any],
    *,
    seed: int = 0,
    reading: dict[str, Any] | None = None,
    model_file: Path | None = None,
) -> dict[str, Any]:
    """Fit a lasso or an elastic net to samples whose targets are numbers; collective.

    Args:
        world: The ranks.
        data: What `sfb.training.data.load` takes.
        settings: Parameters of `sfb.models.ElasticNet`.
        seed: Seed of the split into samples to learn from and to test on, and of the schedule.
        reading: Further arguments of `sfb.training.data.load`.
        model_file: File for the model, which rank 0 writes.

    Returns:
        The run as a JSON object: {"format": 1, "model", "data", "settings", "environment", "seconds", "converged",
        "objective", "gap", "relative_gap", "nonzeros", "features", "screened", "working_sets", "passes", "samples",
        "test_samples", "r2"}; "r2" is that of the test samples, None where their targets are all the same.

    Raises:
        DataError, TrainingError, ValueError, MismatchError: As `sfb.training.train.train` does.
    """
    options = {**(reading or {}), "targets": "numbers"}
    _compare(world, "lasso", data=data, settings=settings, seed=seed, reading=options, model_file=model_file)
    dataset = load(world, data, seed=seed, **options)
    if dataset.y.ndim > 1:
        raise DataError(f"{data}: a lasso predicts one target of each sample, the data has {dataset.y.shape[1]}")
    own = dataset.train if dataset.sharded else dataset.train[world.rank :: world.size]
    tested = dataset.test if dataset.sharded else dataset.test[world.rank :: world.size]
    model = ElasticNet(**settings, random_state=seed, comm=world)
    seconds, converged = _timed(world, lambda: model.fit(dataset.x[own], dataset.y[own]))
    score = _r2(world, dataset.test_y[tested], model.predict(dataset.test_x[tested]) if len(tested) else np.empty(0))
    if model_file is not None:
        scaler = dataset.scaler and (dataset.scaler.offset, dataset.scaler.factor)
        save_model(world, model_file, model, scaler)
    return {
        **_head(world, "lasso", data, settings, seed, seconds, converged),
        "objective": float(model.objective_),
        "gap": float(model.dual_gap_),
        "relative_gap": float(model.dual_gap_ / model.objective_) if model.objective_ > 0 else 0.0,
        "nonzeros": int(np.count_nonzero(model.coef_)),
        "features": int(model.n_features_in_),
        "screened": int(model.n_screened_),
        "working_sets": int(model.n_iter_),
        "passes": int(model.n_epochs_),
        "samples": dataset.total_train,
        "test_samples": dataset.total_test,
        "r2": score,
    }


def fit_mf(
    world: MPI.Intracomm,
    data: str,
    settings: dict[str, Any],
    *,
    seed: int = 0,
    test_fraction: float = 0.1,
    model_file: Path | None = None,
) -> dict[str, Any]:
    """Factorize ratings; collective.

    Rank 0 reads the ratings, and user u goes to rank u mod P. The model file holds the factors of all users, and the
    names that the data gives users and items.

    Args:
        world: The ranks.
        data: What `sfb.data.read_ratings` takes.
        settings: Parameters of `sfb.models.MatrixFactorization`.
        seed: Seed of the split and of the factors.
        test_fraction: Part of the ratings to hold out, ≥ 0 and < 1.
        model_file: File for the model, which rank 0 writes.

    Returns:
        The run as a JSON object: {"format": 1, "model", "data", "settings", "environment", "seconds", "converged",
        "epochs", "objective", "users", "items", "ratings", "test_ratings", "rmse", "test_rmse"}; "objective" is None
        where it is not computed, "test_rmse" without test ratings.

    Raises:
        DataError, TrainingError, ValueError, MismatchError: As `sfb.training.train.train` does.
    """
    _compare(world, "mf", data=data, settings=settings, seed=seed, test=test_fraction, model_file=model_file)
    parts: list[Any] = []
    names: tuple[np.ndarray, ...] = ()
    with together(world, "--data"):
        if world.rank == 0:
            table = read_ratings(data)
            names = table.user_names, table.item_names
            out = np.random.default_rng(seed).random(len(table.values)) < test_fraction
            both = [
                replace(table, users=table.users[kept], items=table.items[kept], values=table.values[kept])
                for kept in (~out, out)
            ]
            parts = [[each.shard(rank, world.size) for each in both] for rank in range(world.size)]
    learn, test = _deal(world, parts)
    model = MatrixFactorization(**settings, random_state=seed, comm=world)
    seconds, converged = _timed(world, lambda: model.fit(learn))
    (count, error), (test_count, test_error) = _errors(world, model, learn), _errors(world, model, test)
    users = int(world.allreduce(len(model.user_factors_)))
    if model_file is not None:
        save_model(world, model_file, gather(world, model, *names))
    return {
        **_head(world, "mf", data, settings, seed, seconds, converged),
        "epochs": int(model.n_iter_),
        "objective": None if model.objective_ is None else float(model.objective_),
        "users": users,
        "items": int(model.n_features_in_),
        "ratings": count,
        "test_ratings": test_count,
        "rmse": error,
        "test_rmse": test_error,
    }


def fit_lda(
    world: MPI.Intracomm,
    data: str,
    settings: dict[str, Any],
    *,
    seed: int = 0,
    test_fraction: float = 0.1,
    vocabulary: str | None = None,
    model_file: Path | None = None,
) -> dict[str, Any]:
    """Find topics of documents; collective.

    Rank 0 reads the documents, and deals them to the ranks.

    Args:
        world: The ranks.
        data: A file that `sfb.data.read_bag_of_words` reads, or a .npz file of `scipy.sparse.save_npz` with counts,
            documents × words.
        settings: Parameters of `sfb.models.LatentDirichletAllocation`.
        seed: Seed of the split and of the topics.
        test_fraction: Part of the documents to hold out, ≥ 0 and < 1.
        vocabulary: File with a word a line.
        model_file: File for the model, which rank 0 writes.

    Returns:
        The run as a JSON object: {"format": 1, "model", "data", "settings", "environment", "seconds", "converged",
        "sweeps", "log_likelihood", "log_likelihoods", "documents", "test_documents", "words", "tokens", "perplexity",
        "top_words"}; "log_likelihood" is that of a token, "perplexity" that of the test documents, or None without
        any, and "top_words" holds the likeliest words of each topic, or their numbers.

    Raises:
        DataError, TrainingError, ValueError, MismatchError: As `sfb.training.train.train` does.
    """
    given = {"vocabulary": vocabulary, "model_file": model_file}
    _compare(world, "lda", data=data, settings=settings, seed=seed, test=test_fraction, **given)
    parts: list[Any] = []
    with together(world, "--data"):
        if world.rank == 0:
            counts = _documents(data)
            out = np.random.default_rng(seed).random(counts.shape[0]) < test_fraction
            both = [counts[np.flatnonzero(kept)] for kept in (~out, out)]
            parts = [[each[rank :: world.size] for each in both] for rank in range(world.size)]
    words: list[str] | None = None
    with together(world, "--vocabulary"):
        if world.rank == 0 and vocabulary is not None:
            words = read_vocabulary(vocabulary)
            if len(words) != counts.shape[1]:
                raise DataError(f"{vocabulary} has {len(words)} words, but {data} has {counts.shape[1]}")
    words = world.bcast(words)
    learn, test = _deal(world, parts)
    model = LatentDirichletAllocation(**settings, random_state=seed, comm=world)
    seconds, converged = _timed(world, lambda: model.fit(learn, vocabulary=words))
    # Every second token of a document counts.
    tokens = int((np.asarray(test.sum(axis=1)).ravel() // 2).sum())
    total, tokens = world.allreduce(np.array([tokens * model.score(test) if tokens else 0.0, tokens]))
    documents, test_documents = world.allreduce(np.array([learn.shape[0], test.shape[0]]))
    if model_file is not None:
        save_model(world, model_file, model)
    return {
        **_head(world, "lda", data, settings, seed, seconds, converged),
        "sweeps": int(model.n_iter_),
        "log_likelihood": float(model.log_likelihood_),
        "log_likelihoods": [float(each) for each in model.log_likelihoods_],
        "documents": int(documents),
        "test_documents": int(test_documents),
        "words": int(model.n_features_in_),
        "tokens": int(model.n_tokens_),
        "perplexity": float(np.exp(-total / tokens)) if tokens else None,
        "top_words": model.top_words(_TOP),
    }


def _compare(world: MPI.Intracomm, name: str, **given: Any) -> None:
    """Raise `sfb.MismatchError` on every rank if the ranks were given different options; collective."""
    compare(world, f"sfb train {name}", ", ".join(f"{key}={value!r}" for key, value in given.items()))


def _deal(world: MPI.Intracomm, parts: list[Any]) -> Any:
    """Return this rank's part of those of rank 0; collective. Each travels alone, so that large data fits messages."""
    if world.rank:
        return world.recv(source=0)
    for rank in range(1, world.size):
        world.send(parts[rank], rank)
        parts[rank] = None
    return parts[0]


def _timed(world: MPI.Intracomm, fit: Callable[[], Any]) -> tuple[float, bool]:
    """Fit, and return the seconds it took and whether the solver has converged, as rank 0 says; collective."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        start = time.perf_counter()
        fit()
        seconds = time.perf_counter() - start
    for each in caught:
        if not issubclass(each.category, ConvergenceWarning):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
    result: tuple[float, bool] = world.bcast((seconds, converged))
    return result


def _head(
    world: MPI.Intracomm, name: str, data: str, settings: dict[str, Any], seed: int, seconds: float, converged: bool
) -> dict[str, Any]:
    """Return what the results of all fits begin with; collective."""
    return {
        "format": 1,
        "model": name,
        "data": data,
        "settings": {**settings, "seed": seed},
        "environment": describe(world),
        "seconds": seconds,
        "converged": converged,
    }


def _r2(world: MPI.Intracomm, y: np.ndarray, found: np.ndarray) -> float | None:
    """Return R² of the samples of all ranks; collective."""
    total, count = world.allreduce(np.array([y.sum(), float(len(y))]))
    error, spread = world.allreduce(np.array([np.square(y - found).sum(), np.square(y - total / count).sum()]))
    return float(1 - error / spread) if spread > 0 else None


def _errors(world: MPI.Intracomm, model: MatrixFactorization, ratings: Any) -> tuple[int, float | None]:
    """Return the number of ratings of all ranks and their RMSE, None without any; collective."""
    (rows, columns), values = ratings.coords, ratings.data
    if model.feedback == "implicit":  # what is predicted is whether there was feedback
        rows, columns, values = rows[values > 0], columns[values > 0], np.ones(np.sum(values > 0))
    errors = model.predict(rows, columns) - values if len(values) else values
    square, count = world.allreduce(np.array([np.square(errors, dtype=np.float64).sum(), float(len(values))]))
    return int(count), float(np.sqrt(square / count)) if count else None


def _documents(path: str) -> csr_matrix:
    """Return the counts of words in the documents of a file."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    with Path(path).open("rb") as file:
        packed = file.read(2) == b"PK"
    return csr_matrix(load_npz(path)) if packed else read_bag_of_words(path)
