"""Seconds of an epoch of matrix factorization, beside the package implicit on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_matrix, vstack

from sfb.bench.engine import Benchmark, Column, Heading, Row, columns
from sfb.models.ranks import Ranks
from sfb.models.ratings.alternating import Alternating, Problem
from sfb.models.ratings.descent import Descent
from sfb.models.ratings.ratings import read
from sfb.schedule import Block, Trace

__all__ = ["CANDIDATES", "COLUMNS", "Config", "SlowDescent", "made_ratings", "run"]

CANDIDATES = ("als-cg", "als-cholesky", "sgd", "implicit-cg", "implicit-cholesky")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure.

    Attributes:
        users: Users of all ranks.
        items: Items.
        ratings: Ratings, about; duplicates are dropped.
        factors: Numbers of factors K.
        candidates: Any of `CANDIDATES`; those of implicit run on rank 0 alone, while others wait.
        epochs: Timed epochs of each candidate, in turn.
        warmups: Epochs before them.
        regularization: λ, not multiplied by numbers of ratings.
        blocks: Blocks of items for each rank, with "sgd".
        passes: Most further passes over a block while others are not done, with "sgd".
        slow: By which factor rank 0 is slower with "sgd"; it sleeps.
        seed: Seed.
    """

    users: int = 200_000
    items: int = 20_000
    ratings: int = 10_000_000
    factors: Sequence[int] = (32, 64)
    candidates: Sequence[str] = CANDIDATES
    epochs: int = 3
    warmups: int = 1
    regularization: float = 0.01
    blocks: int = 1
    passes: int = 0
    slow: float = 1.0
    seed: int = 0


COLUMNS = [
    Column("candidate", "candidate", width=18),
    Column("factors", "factors", width=9),
    Column("ranks", "ranks", width=7),
    Column("seconds", "epoch(s)", "{:.3f}".format, 12),
    Column("rate", "Mratings/s", lambda value: f"{value / 1e6:.2f}", 12),
    *columns(lambda value: "-" if value is None else f"{value:.4f}", 12, loss="RMSE"),
    *columns(lambda value: "-" if value is None else f"{100 * value:.1f}", 10, wait="wait(%)", improve="extra(%)"),
    Column("extra", "passes", lambda value: "-" if value is None else str(value), 8),
]


def made_ratings(
    users: int, items: int, ratings: int, seed: int, first: int = 0, last: int | None = None
) -> csr_matrix:
    """Return ratings 1 to 5 of users ``first`` to ``last``, float32; popular items have more, by Zipf's law.

    A user has the same ratings whatever the range.
    """
    chances = np.cumsum(1 / (np.arange(items) + 20.0))
    chances /= chances[-1]
    last = users if last is None else last
    parts = []
    for chunk in range(0, users, 1000):
        if chunk + 1000 <= first or chunk >= last:
            continue
        rng, rows = np.random.default_rng([seed, chunk]), min(1000, users - chunk)
        count = round(ratings * rows / users)
        entries = rng.integers(0, rows, count), np.searchsorted(chances, rng.random(count))
        pairs = np.unique(entries[0] * items + np.minimum(entries[1], items - 1))
        row, column = pairs // items, pairs % items
        taste = np.sin(0.37 * (row + chunk) + 0.11 * column)
        values = np.clip(np.rint(3 + 1.5 * taste + rng.normal(0, 0.5, len(pairs))), 1, 5).astype(np.float32)
        part = csr_matrix((values, (row, column)), shape=(rows, items))
        parts.append(part[max(first - chunk, 0) : min(last - chunk, rows)])
    return vstack(parts, format="csr") if parts else csr_matrix((0, items), dtype=np.float32)


class SlowDescent(Descent):
    """Gradient descent whose rank takes ``factor`` times as long over each block, by sleeping."""

    factor = 1.0

    def push(self, block: Block) -> None:
        """Take steps, then sleep."""
        began = perf_counter()
        super().push(block)
        sleep((self.factor - 1) * (perf_counter() - began))


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    """Yield a row for each number of factors and candidate; collective."""
    first, last = (config.users * (world.rank + part) // world.size for part in (0, 1))
    x = made_ratings(config.users, config.items, config.ratings, config.seed, first, last)
    count = int(world.allreduce(x.nnz))
    heading(
        "Matrix factorization",
        f"{config.users} users, {config.items} items, {count} ratings; an epoch solves for all users and all items",
        "als: implicit feedback, 3 steps of conjugate gradients or Cholesky; sgd: explicit ratings, with biases",
        "sfb on all ranks; implicit with one thread on rank 0 alone; candidates take epochs in turn",
    )
    whole = None
    if world.rank == 0 and any(name.startswith("implicit") for name in config.candidates):
        whole = x if world.size == 1 else made_ratings(config.users, config.items, config.ratings, config.seed)
    for factors in config.factors:
        yield from _of_factors(world, config, x, whole, factors, count)


def _of_factors(
    world: MPI.Intracomm, config: Config, x: csr_matrix, whole: csr_matrix | None, factors: int, count: int
) -> Iterator[Row]:
    """Yield the rows of a number of factors; collective."""
    trace = Trace(world)
    ratings = read(x, duplicates="error", limits=None, implicit=True)
    rng = np.random.default_rng(config.seed)
    start = (0.1 * rng.standard_normal((config.items, factors))).astype(np.float32)
    with Ranks(world) as ranks:
        calls: dict[str, Callable[[], Any]] = {}
        descent: SlowDescent | None = None
        for name in config.candidates:
            if name.startswith("als"):
                problem = Problem(config.regularization, False, False, 1.0, 3 if name == "als-cg" else 0, 0.0)
                calls[name] = Alternating(ranks, ratings, problem, start.copy()).epoch
            elif name == "sgd":
                problem = Problem(config.regularization, True, True, 0.0, 0, 3.0)
                users = (0.1 * rng.standard_normal((x.shape[0], factors + 1))).astype(np.float32)
                items = np.hstack([start, np.zeros((config.items, 1), np.float32)])
                descent = SlowDescent(
                    ranks, ratings, problem, users, items, rate=0.01, seed=config.seed, blocks=config.blocks,
                    passes=config.passes, trace=trace,
                )  # fmt: skip
                descent.factor = config.slow if world.rank == 0 else 1.0
                calls[name] = descent.epoch
            else:
                calls[name] = _implicit(whole, factors, name, config) if whole is not None else lambda: None
        for call in calls.values():
            for _ in range(config.warmups):
                call()
        trace.spans.clear()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(config.epochs):
            for name, call in calls.items():
                world.Barrier()
                began = perf_counter()
                call()
                times[name].append(world.allreduce(perf_counter() - began, MPI.MAX))
        spent = np.array(world.allgather([trace.seconds().get(kind, 0.0) for kind in ("wait", "extra")])).mean(axis=0)
        extra = world.allreduce(0 if descent is None else descent.extra)
        loss = None if descent is None else float(np.sqrt(descent.loss / count))
        if descent is not None:
            descent.free()
    for name, taken in times.items():
        seconds, own = float(np.median(taken)), name == "sgd"
        yield {
            "candidate": name,
            "factors": factors,
            "ranks": 1 if name.startswith("implicit") else world.size,
            "seconds": seconds,
            "rate": count / seconds,
            "loss": loss if own else None,
            "wait": float(spent[0] / sum(taken)) if own else None,
            "improve": float(spent[1] / sum(taken)) if own else None,
            "extra": extra if own else None,
        }


def _implicit(x: csr_matrix, factors: int, name: str, config: Config) -> Callable[[], Any]:
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=factors,
        regularization=config.regularization,
        use_cg=name == "implicit-cg",
        iterations=1,
        num_threads=1,
        random_state=config.seed,
    )
    return lambda: model.fit(x, show_progress=False)


run = Benchmark(COLUMNS, _rows)
