"""Rotation with a slow rank: the objective against seconds, with and without further passes of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.bench.engine import Benchmark, Column, Heading, Row
from sfb.bench.factorization import SlowDescent, made_ratings
from sfb.bench.lda import SlowSampler, made_corpus
from sfb.models.compiling import load
from sfb.models.ranks import Ranks
from sfb.models.ratings.alternating import Problem
from sfb.models.ratings.ratings import read
from sfb.models.topics.gibbs import Options, Prior

__all__ = ["COLUMNS", "MODELS", "Config", "draw", "run"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure.

    Attributes:
        models: Any of "lda" and "mf".
        passes: Most further passes over a block, one case each.
        slow: By which factor rank 0 is slower; it sleeps.
        seconds: Seconds of sweeps of each case; the objective is computed outside of them.
        size: Documents, or thousands of ratings, of all ranks.
        topics: Topics K.
        factors: Factors K.
        seed: Seed.
    """

    models: Sequence[str] = ("lda", "mf")
    passes: Sequence[int] = (0, 10)
    slow: float = 4.0
    seconds: float = 10.0
    size: int = 4000
    topics: int = 50
    factors: int = 16
    seed: int = 0


COLUMNS = [
    Column("model", "model", width=8),
    Column("passes", "passes", width=8),
    Column("sweep", "sweep", width=8),
    Column("seconds", "time(s)", "{:.3f}".format, 12),
    Column("objective", "objective", "{:.5f}".format, 12),
    Column("extra", "made", width=8),
]

# Makes a sweep, the objective, and the further passes that this rank has made.
_Case = tuple[Callable[[], Any], Callable[[], float], Callable[[], int]]


def _lda(stack: ExitStack, ranks: Ranks, config: Config, passes: int) -> _Case:
    """Return a sampler; its objective is the log-likelihood of a token."""
    first, last = (config.size * (ranks.rank + part) // ranks.size for part in (0, 1))
    counts = made_corpus(config.size, 5000, 100, config.seed, first, last)
    prior = Prior(np.full(config.topics, 0.1), 0.01)
    sampler = SlowSampler(ranks, counts, prior, config.seed, Options(passes=passes))
    stack.enter_context(sampler)
    sampler.factor = config.slow if ranks.rank == 0 else 1.0
    return sampler.sweep, lambda: sampler.log_likelihood() / sampler.tokens, lambda: sampler.extra


def _mf(stack: ExitStack, ranks: Ranks, config: Config, passes: int) -> _Case:
    """Return gradient descent; its objective is the error that an epoch met."""
    users, items = 10 * config.size, 2000
    first, last = (users * (ranks.rank + part) // ranks.size for part in (0, 1))
    x = made_ratings(users, items, 1000 * config.size, config.seed, first, last)
    count = int(ranks.sum(np.array([x.nnz]))[0])
    ratings = read(x, duplicates="error", limits=None, implicit=False)
    rng = np.random.default_rng([config.seed, 1])
    start = (0.3 * rng.standard_normal((items, config.factors + 1))).astype(np.float32)
    own = (0.3 * rng.standard_normal((last - first, config.factors + 1))).astype(np.float32)
    problem = Problem(0.02, True, True, 0.0, 0, 3.0)
    descent = SlowDescent(ranks, ratings, problem, own, start, rate=0.01, seed=config.seed, passes=passes)
    stack.enter_context(descent)
    descent.factor = config.slow if ranks.rank == 0 else 1.0
    return descent.epoch, lambda: float(np.sqrt(descent.loss / count)), lambda: descent.extra


MODELS = {"lda": _lda, "mf": _mf}
KERNELS = {"lda": "gibbs", "mf": "factorization"}


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    """Yield a row for each sweep of each case; collective."""
    heading(
        "Rotation with a slow rank",
        f"rank 0 takes {config.slow:g} times as long over each block; others make so many further passes at most",
        "objective: lda the log-likelihood of a token, mf the RMSE that an epoch met",
    )
    for model in config.models:
        for passes in config.passes:
            with ExitStack() as stack:
                ranks = stack.enter_context(Ranks(world))
                load(ranks, KERNELS[model], "bench slow")
                sweep, objective, extra = MODELS[model](stack, ranks, config, passes)
                seconds, number = 0.0, 0
                while seconds < config.seconds:
                    world.Barrier()
                    began = perf_counter()
                    sweep()
                    seconds += world.allreduce(perf_counter() - began, MPI.MAX)
                    number += 1
                    yield {
                        "model": model,
                        "passes": passes,
                        "sweep": number,
                        "seconds": seconds,
                        "objective": objective(),
                        "extra": int(world.allreduce(extra())),
                    }


def draw(rows: list[Row], path: Path) -> None:
    """Draw the objective against seconds, one panel for each model."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(5.5 * len(models), 4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for passes in dict.fromkeys(row["passes"] for row in rows):
            own = [row for row in rows if row["model"] == model and row["passes"] == passes]
            label = f"up to {passes} further passes" if passes else "no further passes"
            axes.plot([row["seconds"] for row in own], [row["objective"] for row in own], marker=".", label=label)
        axes.set(xlabel="seconds", ylabel="log-likelihood of a token" if model == "lda" else "RMSE", title=model)
        axes.legend()
    figure.savefig(path, dpi=120)


run = Benchmark(COLUMNS, _rows, draw)
