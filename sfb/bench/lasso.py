"""The lasso beside scikit-learn, celer and skglm: time to a duality gap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from mpi4py import MPI
from sklearn import linear_model

from sfb.bench.engine import Benchmark, Column, Heading, Row, Timing, columns, measure
from sfb.models import Lasso
from sfb.units import milliseconds

__all__ = ["CANDIDATES", "COLUMNS", "Config", "correlated", "gap_of", "run"]

CANDIDATES = ("sfb", "scikit-learn", "celer", "skglm")
_OURS = CANDIDATES[0]
# Tolerances that are tried, from the loosest: each library measures its own differently.
_TOLERANCES = tuple(10.0 ** (-power / 2) for power in range(4, 29))


@dataclass(frozen=True, kw_only=True)
class Config(Timing):
    """What to measure.

    Attributes:
        samples: The number of samples n.
        features: The number of features D.
        correlation: The correlation of neighbouring features.
        support: The number of features that the targets depend on.
        ratios: Each alpha, relative to the least for which all coefficients are 0.
        gap: The duality gap to reach, relative to the objective.
        candidates: Names of libraries.
    """

    samples: int = 2000
    features: int = 20_000
    correlation: float = 0.5
    support: int = 100
    ratios: Sequence[float] = (0.1, 0.03)
    gap: float = 1e-6
    candidates: Sequence[str] = CANDIDATES


COLUMNS = [
    *columns("{:.3g}".format, 9, ratio="alpha/max"),
    *columns(str, 14, library="library"),
    *columns(milliseconds, 12, seconds="time(ms)", min="min", p99="p99"),
    *columns("{:.1e}".format, 10, tol="tol", gap="gap"),
    Column("objective", "objective", "{:.10g}".format, 16),
    Column("support", "support", width=9),
    Column("against", "time/sfb", "{:.2f}".format, 10),
]


def correlated(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return features whose correlation falls with their distance, in Fortran order, and targets with noise."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((config.features, config.samples))
    fresh = np.sqrt(1 - config.correlation**2)
    for j in range(1, config.features):
        rows[j] *= fresh
        rows[j] += config.correlation * rows[j - 1]
    chosen = rng.choice(config.features, min(config.support, config.features), replace=False)
    y = rng.choice([-1.0, 1.0], len(chosen)) @ rows[chosen]
    y += rng.standard_normal(config.samples) * (np.linalg.norm(y) / np.sqrt(config.samples) / 3)
    return rows.T, y


def gap_of(x: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float, alpha: float) -> tuple[float, float]:
    """Return the objective of a lasso with an intercept, and its duality gap relative to it."""
    n = len(y)
    r = y - x @ coef - intercept
    r -= r.mean()
    primal = r @ r / (2 * n) + alpha * np.abs(coef).sum()
    theta = r * min(1.0, alpha * n / np.abs(x.T @ r).max())
    dual = (theta @ y - theta @ theta / 2) / n
    return float(primal), float((primal - dual) / primal)


def _model(library: str, alpha: float, tol: float, comm: MPI.Intracomm) -> Any:
    """Return an estimator of a library."""
    if library == _OURS:
        return Lasso(alpha, tol=tol, comm=comm)
    if library == "scikit-learn":
        return linear_model.Lasso(alpha, tol=tol, max_iter=100_000)
    if library == "celer":
        from celer import Lasso as Celer

        return Celer(alpha, tol=tol, max_iter=100)
    from skglm import Lasso as Skglm

    return Skglm(alpha, tol=tol, max_iter=100)


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    absent = [name for name in config.candidates if name in ("celer", "skglm") and find_spec(name) is None]
    found = [name for name in config.candidates if name not in absent]
    names = found if _OURS in found else [_OURS, *found]
    heading(
        f"sfb bench lasso: {config.samples}×{config.features} float64, neighbours correlated by {config.correlation}",
        f"time: of fit, until the duality gap is {config.gap:g} of the objective; each library at the loosest tol of a "
        "grid that gets there",
        "gap: what is reached, measured alike for all; other libraries fit on rank 0, the other ranks wait",
        *(["not installed: " + ", ".join(absent)] if absent else []),
    )
    x, y = correlated(config)
    edges = np.linspace(0, config.samples, world.size + 1).astype(int)
    mine = slice(edges[world.rank], edges[world.rank + 1])
    shard = np.asfortranarray(x[mine]), y[mine]
    largest = np.abs(x.T @ (y - y.mean())).max() / config.samples

    def fit(library: str, alpha: float, tol: float) -> Any:
        if library == _OURS:
            return _model(library, alpha, tol, world).fit(*shard)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _model(library, alpha, tol, world).fit(x, y) if world.rank == 0 else None

    for ratio in config.ratios:
        alpha = float(ratio * largest)
        tolerances, results = {}, {}
        for name in names:
            for tol in _TOLERANCES:
                model = fit(name, alpha, tol)
                said = None if model is None else gap_of(x, y, np.ravel(model.coef_), float(model.intercept_), alpha)
                objective, gap = world.bcast(said)
                if gap <= config.gap:
                    break
            support = world.bcast(None if model is None else int(np.count_nonzero(model.coef_)))
            tolerances[name], results[name] = tol, (objective, gap, support)
        calls: dict[str, Callable[[], Any]] = {name: partial(fit, name, alpha, tolerances[name]) for name in names}
        times = measure(world, calls, config)
        for name in names:
            objective, gap, support = results[name]
            yield {
                "ratio": ratio,
                "library": name,
                "seconds": times[name].median,
                "min": times[name].min,
                "p99": times[name].p99,
                "tol": tolerances[name],
                "gap": gap,
                "objective": objective,
                "support": support,
                "against": times[name].median / times[_OURS].median,
            }


run = Benchmark(COLUMNS, _rows)
