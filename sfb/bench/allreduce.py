"""Allreduce of factors: every algorithm beside MPI's own Allreduce of the dense gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_array

import sfb
from sfb.bench.engine import Benchmark, Column, Exchanges, Heading, Row, Times, columns, measure, settle
from sfb.collectives import ALGORITHMS, SPARSE_ALGORITHMS
from sfb.tuning.plan import AUTO
from sfb.units import microseconds

__all__ = ["CANDIDATES", "COLUMNS", "SPARSE_CANDIDATES", "Config", "draw", "run"]

MPI_OWN, DENSIFIED = "mpi", "densified"
CANDIDATES = (MPI_OWN, *ALGORITHMS, AUTO)
SPARSE_CANDIDATES = (MPI_OWN, DENSIFIED, *SPARSE_ALGORITHMS, AUTO)
_LR = 0.1


@dataclass(frozen=True, kw_only=True)
class Config(Exchanges):
    """What to measure.

    Attributes:
        dtype: "float32" or "float64".
        receiver: "array", set to the sum; "sgd", W ← W − lr·G; or "momentum", SGD with momentum 0.9.
        memory: "shared" for receivers with one copy per node, "private" for one per rank. MPI's own
            Allreduce always works on one per rank.
        algorithms: Names of `CANDIDATES`, or of `SPARSE_CANDIDATES` with ``filled``; MPI's own is always measured, and
            so is "densified".
        check: Compare with an oracle.
        filled: The part of v's elements that are not 0, for CSR v; None for dense v.
    """

    dtype: str = "float32"
    receiver: str = "array"
    memory: str = "shared"
    algorithms: Sequence[str] = CANDIDATES
    check: bool = True
    filled: float | None = None

    @property
    def candidates(self) -> list[str]:
        """Names of what is measured."""
        names = CANDIDATES if self.filled is None else SPARSE_CANDIDATES
        return [name for name in names if name in (MPI_OWN, DENSIFIED) or name in self.algorithms]


COLUMNS = [
    *columns(str, 7, K="K", D="D", S="S"),
    *columns(str, 11, algorithm="algorithm", taken="taken"),
    *columns(microseconds, 12, seconds="time(us)", min="min", avg="avg", p99="p99"),
    *columns(microseconds, 12, exchange="exch(us)", rebuild="rebuild(us)", predicted="pred(us)"),
    Column("wire_bytes", "wire(B)", width=12),
    *columns("{:.2f}".format, 12, algbw="algbw(GB/s)", busbw="busbw(GB/s)"),
    Column("speedup", "mpi/this", "{:.2f}".format, 9),
    Column("wrong", "#wrong", width=7),
]


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    heading(
        "sfb bench allreduce",
        f"receiver: {config.receiver}, {config.memory} memory, {config.dtype}; mpi: local GEMM, "
        "Allreduce of a dense gradient and update in NumPy, per rank",
        "time: median over iterations of the slowest rank; pred: estimate of the cost model; "
        "algbw = K·D·bytes/time, busbw = algbw·2(P−1)/P",
        *([] if config.filled is None else [_filled_note(config.filled)]),
    )
    with sfb.Comm(world) as comm:
        _ = comm.profile  # before the first estimate, so that all rest on the same measurements
        for shape in config.shapes:
            case = _Case(comm, world, config, shape)
            for samples in config.samples:
                yield from case.measure(samples)


def _filled_note(filled: float) -> str:
    return (
        f"v: CSR, {100 * filled:g} % filled; mpi: SciPy forms the dense gradient; densified: Factors(u, v.toarray()), "
        "auto, with the seconds of toarray"
    )


class _Case:
    """The receivers of one shape, and the candidates that work on them."""

    def __init__(self, comm: sfb.Comm, world: MPI.Intracomm, config: Config, shape: tuple[int, int]) -> None:
        self._comm = comm
        self._world = world
        self._config = config
        self._shape = shape
        dtype = np.dtype(config.dtype)
        self._gradient = np.zeros(shape, dtype)
        self._private = self._gradient if config.receiver == "array" else np.zeros(shape, dtype)
        self._target = comm.shared(shape, dtype) if config.memory == "shared" else np.zeros(shape, dtype)
        self._dense_parts = 0.0, 0.0
        self._taken: dict[str, tuple[str, int]] = {}
        self._receivers: dict[bool, Any] = {True: self._private, False: self._target}
        if config.receiver != "array":
            momentum = 0.9 if config.receiver == "momentum" else 0.0
            self._receivers = {
                True: _NumpySGD(self._private, momentum),
                False: sfb.optim.SGD(self._target, lr=_LR, momentum=momentum),
            }

    def measure(self, samples: int) -> list[Row]:
        """Return a row for each candidate; collective."""
        factors = self._factors(samples)
        names = self._config.candidates
        calls = {name: self._candidate(name, factors) for name in names}
        predicted = self._predict(factors, calls)
        times = measure(self._world, calls, self._config, parts=self._parts)
        wrong: dict[str, int | None] = dict.fromkeys(names)
        if self._config.check:
            oracle = _Oracle(self._world, factors)
            wrong = {name: self._wrong(name, factors, oracle) for name in names}
        return [
            self._row(name, samples, times[name], times[MPI_OWN], self._taken[name], predicted.get(name), wrong[name])
            for name in names
        ]

    def _predict(self, factors: sfb.Factors, calls: dict[str, Callable[[], None]]) -> dict[str, float | None]:
        """Return the estimate of each algorithm, after "auto" has timed its contenders.

        Other candidates precede the calls of that trial, as they will precede the timed ones. They are drawn by chance,
        because they leave data in caches and messages in the network, which could favour a contender.
        """
        receiver = self._receivers[False]
        estimates: dict[str, float | None] = {}
        others = [call for name, call in calls.items() if name != AUTO]
        drawn = Random(0)  # the same on all ranks
        dense = sfb.Factors(factors.u, factors.v.toarray()) if factors.sparse else factors
        for name in calls:
            if name != MPI_OWN:
                its, algorithm = (dense, AUTO) if name == DENSIFIED else (factors, name)
                plan = settle(self._comm, its, receiver, algorithm, before=lambda: drawn.choice(others)())
                estimates[name] = next((e.total for e in plan.estimates if e.algorithm == plan.algorithm), None)
        return estimates

    def _factors(self, samples: int) -> sfb.Factors:
        rng = np.random.default_rng((samples, self._world.rank))
        u, v = (rng.standard_normal((samples, n)).astype(self._config.dtype) for n in self._shape)
        if self._config.filled is None:
            return sfb.Factors(u, v)
        return sfb.Factors(u, csr_array(np.where(rng.random(v.shape) < self._config.filled, v, 0)))

    def _candidate(self, name: str, factors: sfb.Factors) -> Callable[[], None]:
        receiver = self._receivers[name == MPI_OWN]
        if name == MPI_OWN:
            return partial(self._dense_step, factors, receiver)
        if name == DENSIFIED:
            return partial(self._densified_step, factors, receiver)
        return partial(self._comm.Allreduce, factors, receiver, algorithm=name)

    def _dense_step(self, factors: sfb.Factors, receiver: Any) -> None:
        """Do what users of mpi4py do today."""
        began = perf_counter()
        factors.dense(out=self._gradient)
        formed = perf_counter()
        self._world.Allreduce(MPI.IN_PLACE, self._gradient)
        reduced = perf_counter()
        if receiver is not self._gradient:
            receiver.step(self._gradient)
        self._dense_parts = reduced - formed, formed - began + perf_counter() - reduced

    def _densified_step(self, factors: sfb.Factors, receiver: Any) -> None:
        """Do what users did before factors took CSR v."""
        self._comm.Allreduce(sfb.Factors(factors.u, factors.v.toarray()), receiver)

    def _parts(self, name: str) -> tuple[float, float]:
        """Return the seconds of exchange and of rebuild of the last call, and note its algorithm and wire bytes."""
        if name == MPI_OWN:
            self._taken[name] = MPI_OWN, 2 * self._gradient.nbytes * (self._world.size - 1) // self._world.size
            return self._dense_parts
        last = self._comm.last_exchange
        assert last is not None
        self._taken[name] = last.algorithm, last.wire_bytes
        return last.exchange_seconds, last.rebuild_seconds

    def _wrong(self, name: str, factors: sfb.Factors, oracle: _Oracle) -> int:
        """Return the wrong elements of all ranks, or all elements where the bits of two ranks differ; collective."""
        receiver = self._receivers[name == MPI_OWN]
        array = receiver if isinstance(receiver, np.ndarray) else receiver.array
        start = np.nan if self._config.receiver == "array" else 1.0
        self._world.Barrier()
        array.fill(start)
        for state in getattr(receiver, "state", ()):
            if state is not None:
                state.fill(0)
        self._world.Barrier()
        self._candidate(name, factors)()
        got = array if self._config.receiver == "array" else (1.0 - array.astype(np.float64)) / _LR
        digests = self._world.allgather(hashlib.blake2b(memoryview(array)).digest())
        if len(set(digests)) > 1:
            return int(np.prod(self._shape))
        rounding = 0.0 if self._config.receiver == "array" else 4 * np.finfo(array.dtype).eps / _LR
        return oracle.wrong(got, rounding)

    def _row(
        self,
        name: str,
        samples: int,
        times: Times,
        mpi: Times,
        taken: tuple[str, int],
        predicted: float | None,
        wrong: int | None,
    ) -> Row:
        ranks = self._world.size
        algbw = self._gradient.nbytes / times.median / 1e9
        return {
            "K": self._shape[0],
            "D": self._shape[1],
            "S": samples,
            "algorithm": name,
            "taken": taken[0],
            "seconds": times.median,
            "min": times.min,
            "avg": times.avg,
            "p99": times.p99,
            "exchange": times.exchange,
            "rebuild": times.rebuild,
            "predicted": predicted,
            "iterations": times.iterations,
            "wire_bytes": self._world.allreduce(taken[1], MPI.MAX),
            "algbw": algbw,
            "busbw": algbw * 2 * (ranks - 1) / ranks,
            "speedup": mpi.median / times.median,
            "wrong": wrong,
        }


class _NumpySGD:
    """SGD as users write it in NumPy, without temporaries."""

    def __init__(self, array: np.ndarray, momentum: float) -> None:
        self.array = array
        self.momentum = momentum
        self.state = [np.zeros_like(array)] if momentum else []

    def step(self, gradient: np.ndarray) -> None:
        """Apply the gradient, which holds the step afterwards."""
        step = gradient
        if self.momentum:
            (velocity,) = self.state
            velocity *= self.momentum
            velocity += gradient
            step = velocity
        np.multiply(step, _LR, out=gradient)
        np.subtract(self.array, gradient, out=self.array)


class _Oracle:
    """The sum in float64; each rank compares its share of the rows."""

    def __init__(self, world: MPI.Intracomm, factors: sfb.Factors) -> None:
        self._world = world
        parts = world.allgather((factors.u, factors.v.toarray() if factors.sparse else factors.v))
        u = np.concatenate([part[0] for part in parts]).astype(np.float64)
        v = np.concatenate([part[1] for part in parts]).astype(np.float64)
        rows = u.shape[1]
        low, high = (rows * i // world.size for i in (world.rank, world.rank + 1))
        self._rows = slice(low, high)
        self._sum = u[:, self._rows].T @ v
        # The library promises |error| ≤ c·eps·Σ|u||v|; c is the number of terms and of partial sums.
        terms = len(u) + world.size + 2
        self._bound = terms * np.finfo(factors.dtype).eps * (np.abs(u[:, self._rows]).T @ np.abs(v))

    def wrong(self, got: np.ndarray, rounding: float) -> int:
        """Return the elements of all ranks beyond the bound; collective."""
        off = ~(np.abs(got[self._rows] - self._sum) <= self._bound + rounding * (1 + np.abs(self._sum)))
        return int(self._world.allreduce(int(off.sum())))


def draw(rows: list[Row], path: Path) -> None:
    """Draw milliseconds against S, one panel a shape and one line an algorithm."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys((row["K"], row["D"]) for row in rows))
    figure = Figure(figsize=(1 + 5 * len(shapes), 4.5), layout="constrained")
    panels = figure.subplots(1, len(shapes), squeeze=False)[0]
    for panel, shape in zip(panels, shapes, strict=True):
        of_shape = [row for row in rows if (row["K"], row["D"]) == shape]
        for name in dict.fromkeys(row["algorithm"] for row in of_shape):
            line = [row for row in of_shape if row["algorithm"] == name]
            style = {"auto": "k--", "mpi": "s-"}.get(name, "o-")
            panel.plot([r["S"] for r in line], [r["seconds"] * 1e3 for r in line], style, label=name, markersize=4)
        panel.set_xscale("symlog", linthresh=1)
        panel.set_yscale("log")
        panel.set_title(f"K={shape[0]}, D={shape[1]}")
        panel.set_xlabel("S, samples per rank")
        panel.set_ylabel("time per exchange (ms)")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    figure.savefig(path, dpi=120)


run = Benchmark(COLUMNS, _rows, draw)
