"""Time of estimators to the objective that scikit-learn's reach, theirs and ours in turn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_array, issparse
from scipy.special import logsumexp
from sklearn import linear_model, neural_network, svm
from threadpoolctl import threadpool_limits

import sfb.models
from sfb.bench.engine import Benchmark, Column, Heading, Row, columns
from sfb.data import encode, read

__all__ = ["ESTIMATORS", "PROBLEMS", "Config", "draw", "run"]

_HELD_OUT = 0.2
_SPARSE = (20_000, 47_000, 0.002)  # samples, features, part of them that is not 0, as in RCV1
_CLASSES = 4
_EPOCHS = 20
_HINGE_COST = 0.01


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure.

    Attributes:
        problems: Names of `PROBLEMS`.
        estimators: Names of `ESTIMATORS`.
        repeats: Fits of each, ours and scikit-learn's in turn; medians are reported.
        threads: Threads of BLAS in each process.
        tol: Tolerance of the solvers of logistic regression.
        size: Part of the made samples and features to take, for a quick run.
    """

    problems: Sequence[str] = ("digits", "mnist", "mnist-csr", "sparse")
    estimators: Sequence[str] = ("logistic", "svc", "mlp")
    repeats: int = 3
    threads: int = 1
    tol: float = 1e-6
    size: float = 1.0


@dataclass(frozen=True)
class _Fit:
    """A fitted estimator.

    Attributes:
        model: The estimator.
        seconds: Seconds of the slowest rank.
        objective: Its objective over the training samples; of "mlp" the loss of the last epoch.
        curve: Of "mlp", the loss of each epoch.
    """

    model: Any
    seconds: float
    objective: float
    curve: Sequence[float] = ()

    def reaches(self, target: float) -> float:
        """Return the seconds until the objective was at most ``target``."""
        if not self.curve:
            return self.seconds
        epochs = next((i for i, loss in enumerate(self.curve, 1) if loss <= target), len(self.curve))
        return self.seconds * epochs / len(self.curve)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


COLUMNS = [
    Column("problem", "problem", width=10),
    Column("estimator", "estimator", width=10),
    Column("ranks", "ranks", width=6),
    Column("objective", "objective", "{:.8g}".format, 12),
    Column("difference", "difference", "{:+.1e}".format, 11),
    *columns(_number, 12, seconds="time(s)", theirs="sklearn(s)", ratio="ratio"),
    Column("accuracy", "accuracy", "{:.4f}".format, 9),
]


def _made(size: float) -> tuple[csr_array, np.ndarray]:
    """Return samples like those of RCV1: sparse rows of length 1, and labels that a linear model explains."""
    samples, features, filled = int(_SPARSE[0] * size), int(_SPARSE[1] * size), _SPARSE[2] / size
    rng = np.random.default_rng(0)
    count = int(features * filled)
    indices = (features * rng.random((samples, count)) ** 2).astype(np.int32)  # some words are frequent
    rows = np.repeat(np.arange(samples, dtype=np.int32), count)
    x = csr_array((rng.lognormal(size=samples * count), (rows, indices.ravel())), shape=(samples, features))
    lengths = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel())
    x.data /= np.repeat(lengths, np.diff(x.indptr))
    scores = x @ rng.standard_normal((features, _CLASSES))
    return x, (scores + 0.5 * scores.std() * rng.standard_normal(scores.shape)).argmax(axis=1)


def _read(name: str, size: float) -> tuple[Any, np.ndarray]:
    x, labels = read(name)
    _, y = encode(np.asarray(labels))
    chosen = np.random.default_rng(0).permutation(len(y))[: max(100, int(size * len(y)))]  # files may be sorted
    return np.ascontiguousarray(x[chosen], np.float64), y[chosen]


def _sparse_mnist(size: float) -> tuple[Any, np.ndarray]:
    x, y = _read("mnist", size)
    return csr_array(x), y


PROBLEMS: dict[str, Callable[[float], tuple[Any, np.ndarray]]] = {
    "digits": lambda size: _read("digits", size),
    "mnist": lambda size: _read("mnist", size),
    "mnist-csr": _sparse_mnist,
    "sparse": _made,
}


def _logistic(config: Config, ours: bool, comm: Any) -> Any:
    settings: dict[str, Any] = {"C": 1.0, "tol": config.tol, "max_iter": 5000}
    return sfb.models.LogisticRegression(**settings, comm=comm) if ours else linear_model.LogisticRegression(**settings)


def _svc(config: Config, ours: bool, comm: Any) -> Any:
    if ours:
        return sfb.models.LinearSVC(_HINGE_COST, max_iter=5000, random_state=0, comm=comm)
    return svm.LinearSVC(C=_HINGE_COST, multi_class="crammer_singer", max_iter=100_000, tol=1e-3)


def _mlp(config: Config, ours: bool, comm: Any) -> Any:
    settings: dict[str, Any] = {"hidden_layer_sizes": (100,), "max_iter": _EPOCHS, "random_state": 0}
    settings["n_iter_no_change"] = _EPOCHS
    return sfb.models.MLPClassifier(**settings, comm=comm) if ours else neural_network.MLPClassifier(**settings)


ESTIMATORS: dict[str, Callable[[Config, bool, Any], Any]] = {"logistic": _logistic, "svc": _svc, "mlp": _mlp}


def _objective(name: str, model: Any, x: Any, y: np.ndarray) -> float:
    """Return the objective that the documentation of both estimators states, in float64."""
    if name == "mlp":
        return float(model.loss_)
    coef, intercept = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(coef) == 1:  # the rows of two classes
        share = 1.0 if name == "logistic" else 0.5
        rows = np.vstack([(share - 1) * coef, share * coef])
        shifts = np.concatenate([(share - 1) * intercept, share * intercept])
    else:
        rows, shifts = coef, intercept
    scores = np.asarray(x @ rows.T) + shifts
    picked = np.arange(len(y)), y
    if name == "logistic":
        return float((logsumexp(scores, axis=1) - scores[picked]).sum() + 0.5 * np.vdot(coef, coef))
    margins = scores - scores[picked][:, np.newaxis] + 1
    margins[picked] = 0
    penalty = 0.5 * (np.vdot(rows, rows) + np.vdot(shifts, shifts))
    return float(penalty + _HINGE_COST * margins.max(axis=1).sum())


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    heading(
        "sfb bench estimators: time to the same objective, ours on all ranks, scikit-learn's on one",
        f"{config.threads} thread(s) of BLAS a process; ratio: scikit-learn's time over ours; medians of "
        f"{config.repeats} fits in turn",
        "difference: of our objective, relative to scikit-learn's; mlp: the loss of the last epoch, and the time until "
        "both have reached the larger one",
        "accuracy: of our model, on samples held out",
    )
    with sfb.Comm(world) as comm, threadpool_limits(config.threads):
        for problem in config.problems:
            x, y = PROBLEMS[problem](config.size)
            count = int(len(y) * (1 - _HELD_OUT))
            train, test = slice(count), slice(count, None)
            for estimator in config.estimators:
                if estimator == "mlp" and issparse(x):
                    continue  # batches become dense: the time is that of copies
                yield _measure(comm, config, problem, estimator, (x[train], y[train]), (x[test], y[test]))


def _measure(comm: sfb.Comm, config: Config, problem: str, estimator: str, train: Any, test: Any) -> Row:
    """Return the row of one estimator on one problem; collective."""
    x, y = train
    mine = x[comm.rank :: comm.size], y[comm.rank :: comm.size]
    ours: list[_Fit] = []
    theirs: list[_Fit] = []
    _fit(ESTIMATORS[estimator](config, True, comm), *(array[:50] for array in mine))  # compiles kernels
    for _ in range(config.repeats):
        comm.Barrier()
        ours.append(_fitted(comm, ESTIMATORS[estimator](config, True, comm), estimator, mine, train))
        if comm.rank == 0:
            theirs.append(_fitted(None, ESTIMATORS[estimator](config, False, None), estimator, train, train))
        _idle(comm)
    model, objective = ours[-1].model, ours[-1].objective
    reference = comm.bcast(theirs[-1].objective if theirs else 0.0)
    target = max(objective, reference)
    seconds = float(np.median([fit.reaches(target) for fit in ours]))
    others = comm.bcast(float(np.median([fit.reaches(target) for fit in theirs])) if theirs else 0.0)
    return {
        "problem": problem,
        "estimator": estimator,
        "ranks": comm.size,
        "objective": objective,
        "difference": objective / reference - 1,
        "seconds": seconds,
        "theirs": others,
        "ratio": others / seconds,
        "accuracy": float(np.mean(model.predict(test[0]) == test[1])),
    }


def _fitted(comm: sfb.Comm | None, model: Any, name: str, mine: Any, train: Any) -> _Fit:
    """Fit an estimator; collective if there is a communicator."""
    began = perf_counter()
    _fit(model, *mine)
    seconds = perf_counter() - began
    if comm is not None:
        seconds = comm.allreduce(seconds, MPI.MAX)
    curve = tuple(model.loss_curve_) if name == "mlp" else ()
    return _Fit(model, seconds, _objective(name, model, *train), curve)


def _fit(model: Any, x: Any, y: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # epochs that still improve
        model.fit(x, y)


def _idle(comm: MPI.Intracomm) -> None:
    """Wait for all ranks without keeping a core busy."""
    request = comm.Ibarrier()
    while not request.Test():
        sleep(2e-3)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the seconds of both, a pair of bars a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(rows))
    for shift, key, label in ((-0.2, "seconds", f"sfb, {rows[0]['ranks']} ranks"), (0.2, "theirs", "scikit-learn")):
        panel.bar(places + shift, [row[key] for row in rows], 0.4, label=label)
    panel.set_xticks(places, [f"{row['problem']}\n{row['estimator']}" for row in rows])
    panel.set_ylabel("seconds to the same objective")
    panel.set_yscale("log")
    panel.grid(axis="y", alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=120)


run = Benchmark(COLUMNS, _rows, draw)
