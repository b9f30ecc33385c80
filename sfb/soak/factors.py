"""Exchanges of factors: blocking, nonblocking and persistent, into arrays and update rules, dense and CSR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_array

import sfb
from sfb.collectives import ALGORITHMS, SPARSE_ALGORITHMS
from sfb.soak import oracle
from sfb.soak.round import Round

__all__ = ["CALLS"]

Part = tuple[np.ndarray, np.ndarray]

_RULES: dict[str, tuple[Any, Callable[..., np.ndarray], dict[str, Any]]] = {
    "SGD": (sfb.optim.SGD, oracle.sgd, {"lr": 0.1}),
    "momentum": (sfb.optim.SGD, oracle.sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "Nesterov": (sfb.optim.SGD, oracle.sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "Adam": (sfb.optim.Adam, oracle.adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1}),
    "AdamW": (sfb.optim.AdamW, oracle.adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1}),
    "Adagrad": (sfb.optim.Adagrad, oracle.adagrad, {"lr": 0.01, "eps": 0.1, "weight_decay": 0.1}),
    "Proximal": (sfb.optim.Proximal, oracle.proximal, {"lr": 0.1, "l1": 0.3, "l2": 0.2}),
    "ball": (sfb.optim.Proximal, oracle.proximal, {"lr": 0.1, "radius": 2.0}),
}
_WHOLE = ("broadcast", "node")  # algorithms by which a rank sees the factors of all at once


@dataclass(frozen=True)
class _Problem:
    """What all ranks exchange.

    Attributes:
        shape: (K, D).
        dtype: float32 or float64.
        filled: The part of v's elements that are not 0, for CSR v; None for dense v.
        wire: See `Round`.
    """

    shape: tuple[int, int]
    dtype: type
    filled: float | None
    wire: str | None

    def part(self, rng: np.random.Generator, samples: int) -> Part:
        """Return u and v of a rank."""
        ((u, v),) = oracle.draw(rng, [samples], self.shape, self.dtype)
        if self.filled is not None:
            v *= rng.random(v.shape) < self.filled
        return u, v

    def factors(self, part: Part) -> sfb.Factors:
        """Return what a rank passes."""
        u, v = part
        return sfb.Factors(u, v if self.filled is None else csr_array(v))

    def slack(self, parts: list[Part]) -> np.ndarray:
        """Return the largest error of a sum."""
        slack = oracle.bound(parts, self.shape, self.dtype)
        return slack if self.wire is None else slack + oracle.rounding(parts, self.shape, self.wire)

    def __str__(self) -> str:
        rows, columns = self.shape
        return f"{rows}×{columns} {np.dtype(self.dtype)}{'' if self.filled is None else ' CSR'}"


def _problem(r: Round) -> _Problem:
    filled = r.dice.pick((0.0, 0.02, 0.3)) if r.wire is None and r.dice.chance(0.25) else None
    dtype = np.float32 if r.wire is not None else r.dice.pick((np.float32, np.float64))
    return _Problem(r.dice.shape(), dtype, filled, r.wire)


def _algorithm(r: Round, problem: _Problem, *, whole: bool = False) -> str:
    if r.dice.chance(0.5) or (problem.filled is not None and not r.roomy):
        return "auto"
    names = ALGORITHMS if problem.filled is None else SPARSE_ALGORITHMS
    return r.dice.pick([name for name in names if name in _WHOLE or not whole])


def _parts(r: Round, problem: _Problem, counts: list[int], *more: int) -> list[Part]:
    """Return u and v of all ranks in the call under way."""
    return [problem.part(r.rng(rank, *more), samples) for rank, samples in enumerate(counts)]


def into_array(r: Round) -> None:
    """Sum into an array, several times."""
    problem, shared = _problem(r), r.dice.chance(0.3)
    algorithm = _algorithm(r, problem)
    g = r.array(problem.shape, problem.dtype, np.nan, shared=shared)
    for _ in range(r.dice.whole(1, 4)):
        counts = r.dice.counts(r.size)
        r.begin(f"Allreduce of {problem}, S={counts}, {algorithm}, into {'shared ' * shared}array")
        parts = _parts(r, problem, counts)
        r.comm.Allreduce(problem.factors(parts[r.rank]), g, algorithm=algorithm)
        r.close(g, oracle.total(parts, problem.shape), problem.slack(parts))
        r.same(g)


def into_rule(r: Round) -> None:
    """Sum into an update rule, several times."""
    problem, shared = _problem(r), r.dice.chance(0.4)
    name = r.dice.pick(list(_RULES))
    optimizer, textbook, settings = _RULES[name]
    algorithm = _algorithm(r, problem)
    start: np.ndarray = r.rng(0, 1).standard_normal(problem.shape).astype(problem.dtype)
    w = r.array(problem.shape, problem.dtype, start, shared=shared)
    receiver = optimizer(w, **settings)
    totals, slack = [], np.zeros(problem.shape)
    for _ in range(r.dice.whole(1, 4)):
        counts = r.dice.counts(r.size)
        r.begin(f"Allreduce of {problem}, S={counts}, {algorithm}, into {'shared ' * shared}{name}")
        parts = _parts(r, problem, counts)
        r.comm.Allreduce(problem.factors(parts[r.rank]), receiver, algorithm=algorithm)
        totals.append(oracle.total(parts, problem.shape))
        slack += problem.slack(parts)
        r.same(w)
    extra = {"decoupled": True} if name == "AdamW" else {}
    expected = textbook(start, totals, **settings, **extra)
    eps = float(np.finfo(problem.dtype).eps)
    slack += (40 + problem.shape[1]) * eps * (abs(start) + abs(expected)) + 10 * eps
    r.close(w, expected, slack, "the parameter")


def clipped(r: Round) -> None:
    """Sum into a rule that clips by the norm of the sum, which a rank forms from the factors of all."""
    if not r.roomy:
        into_array(r)
        return
    problem, shared = _problem(r), r.dice.chance(0.4)
    max_norm, algorithm = r.dice.pick((1e-3, 1.0, 1e6)), _algorithm(r, problem, whole=True)
    counts = r.dice.counts(r.size)
    start: np.ndarray = r.rng(0, 1).standard_normal(problem.shape).astype(problem.dtype)
    w = r.array(problem.shape, problem.dtype, start, shared=shared)
    r.begin(f"Allreduce of {problem}, S={counts}, {algorithm}, into {'shared ' * shared}SGD(max_norm={max_norm})")
    parts = _parts(r, problem, counts)
    r.comm.Allreduce(problem.factors(parts[r.rank]), sfb.optim.SGD(w, lr=0.1, max_norm=max_norm), algorithm=algorithm)
    total, slack = oracle.total(parts, problem.shape), problem.slack(parts)
    norm = float(np.linalg.norm(total))
    scale = min(1.0, max_norm / (norm + 1e-6))
    error = float(np.linalg.norm(slack)) / max(norm, 1e-300)  # of the norm
    eps = float(np.finfo(problem.dtype).eps)
    allowed = 0.1 * scale * (2 * slack + (error + 100 * eps) * abs(total)) + 4 * eps * abs(start)
    r.close(w, start - 0.1 * scale * total, allowed, "the parameter")
    r.same(w)


def nonblocking(r: Round) -> None:
    """Begin several exchanges, do others meanwhile, and wait in the order of each rank's own."""
    begun = []
    requests: list[Any] = []
    for _ in range(r.dice.whole(1, 4)):
        problem, counts = _problem(r), r.dice.counts(r.size)
        algorithm = _algorithm(r, problem)
        g = r.array(problem.shape, problem.dtype, np.nan, shared=r.dice.chance(0.2))
        r.begin(f"Iallreduce of {problem}, S={counts}, {algorithm}")
        parts = _parts(r, problem, counts)
        factors = problem.factors(parts[r.rank])
        requests.append(r.comm.Iallreduce(factors, g, algorithm=algorithm))
        begun.append((problem, parts, factors, g))
    if r.dice.chance(0.3):
        r.begin("Allreduce of 3 numbers beside exchanges under way")
        x = np.arange(3.0)
        r.comm.Allreduce(MPI.IN_PLACE, x)
        r.equal(x, r.size * np.arange(3.0))
    if r.dice.chance(0.3):
        r.begin("Waitall of all Iallreduce")
        sfb.Request.Waitall(requests)
    else:
        r.begin("Wait and Test of all Iallreduce")
        for number in r.own.order(len(requests)):
            if r.own.chance(0.5):
                requests[number].Wait()
            else:
                while not requests[number].Test():
                    pass
    for problem, parts, _, g in begun:
        r.close(g, oracle.total(parts, problem.shape), problem.slack(parts))
        r.same(g)


def persistent(r: Round) -> None:
    """Prepare exchanges, and start them several times, two at once or one after the other."""
    plans = []
    for _ in range(r.dice.whole(1, 2)):
        problem, counts = _problem(r), r.dice.counts(r.size)
        algorithm = _algorithm(r, problem)
        g = r.array(problem.shape, problem.dtype, np.nan, shared=r.dice.chance(0.3))
        r.begin(f"Allreduce_init of {problem}, S={counts}, {algorithm}")
        parts = _parts(r, problem, counts)
        factors = problem.factors(parts[r.rank])
        plans.append((r.comm.Allreduce_init(factors, g, algorithm=algorithm), problem, parts, factors, g))
    together = r.dice.chance(0.5)
    for turn in range(r.dice.whole(1, 4)):
        r.begin(f"Start and Wait of {len(plans)} plans, {'together' if together else 'one after the other'}")
        scale = 1.0 / (1 << turn)  # a power of two: exact
        for plan, _, _, factors, _ in plans:
            factors.u *= scale
            plan.Start()
            if not together:
                plan.Wait()
        if together:
            for plan, *_ in plans:
                plan.Wait()
        for number, (_, problem, parts, _, g) in enumerate(plans):
            # The rank's own factors are those that it has passed, already scaled.
            scaled = [(u if rank == r.rank else u * scale, v) for rank, (u, v) in enumerate(parts)]
            plans[number] = plans[number][0], problem, scaled, *plans[number][3:]
            r.close(g, oracle.total(scaled, problem.shape), problem.slack(scaled))
            r.same(g)
    for plan, *_ in plans:
        plan.Free()


CALLS: dict[Callable[[Round], None], float] = {
    into_array: 4,
    into_rule: 4,
    clipped: 1,
    nonblocking: 3,
    persistent: 2,
}
