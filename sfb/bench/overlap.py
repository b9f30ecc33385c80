"""How much of an exchange is hidden behind computation, as OMB's osu_iallreduce reports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Benchmark, Column, Exchanges, Heading, Row, columns, measure, settle
from sfb.units import microseconds

__all__ = ["COLUMNS", "Config", "run"]

Config = Exchanges
# Side of the matrices of the computation that exchanges are hidden behind.
_SIDE = 128


COLUMNS = [
    *columns(str, 7, K="K", D="D", S="S"),
    Column("candidate", "candidate", width=14),
    *columns(microseconds, 12, pure="pure(us)", compute="compute(us)", total="total(us)"),
    Column("overlap", "overlap(%)", "{:.1f}".format, 11),
]


def _rows(world: MPI.Intracomm, config: Exchanges, heading: Heading) -> Iterator[Row]:
    heading(
        "sfb bench overlap: Iallreduce",
        "pure: start and wait; total: start, compute for as long, wait; overlap = 1 − (total − compute)/pure",
        "mpi: the dense gradient, formed already; thread, poll: factors into a shared array, sfb.Comm(progress=)",
    )
    with ExitStack() as stack:
        comms = {way: stack.enter_context(sfb.Comm(world, progress=way)) for way in ("thread", "poll")}
        for shape in config.shapes:
            gradient = np.zeros(shape, np.float32)
            target = comms["thread"].shared(shape)
            starts: dict[str, Callable[[], Any]] = {"mpi": partial(world.Iallreduce, MPI.IN_PLACE, gradient)}
            for samples in config.samples:
                factors = sfb.Factors(*(np.ones((samples, n), np.float32) for n in shape))
                for way, comm in comms.items():
                    comm.Allreduce(factors, target)
                    settle(comm, factors, target)
                    starts[way] = partial(comm.Iallreduce, factors, target)
                for row in _measure(world, config, starts):
                    yield {"K": shape[0], "D": shape[1], "S": samples, **row}


def _measure(world: MPI.Intracomm, config: Exchanges, starts: Mapping[str, Callable[[], Any]]) -> list[Row]:
    """Return a row for each function that starts an exchange; collective."""
    half = replace(config, seconds=config.seconds / 2)

    def alone(name: str) -> None:
        starts[name]().Wait()

    pure = measure(world, {name: partial(alone, name) for name in starts}, half)
    a, out = np.ones((2, _SIDE, _SIDE), np.float32)
    computed: dict[str, list[float]] = {name: [] for name in starts}

    def computing(name: str) -> None:
        request = starts[name]()
        began = perf_counter()
        while perf_counter() - began < pure[name].median:
            np.dot(a, a, out=out)
        computed[name].append(perf_counter() - began)
        request.Wait()

    total = measure(world, {name: partial(computing, name) for name in starts}, half)
    rows = []
    for name in starts:
        compute = world.allreduce(float(np.median(computed[name])), MPI.MAX)
        hidden = 1 - (total[name].median - compute) / pure[name].median
        rows.append(
            {
                "candidate": name,
                "pure": pure[name].median,
                "compute": compute,
                "total": total[name].median,
                "overlap": 100 * min(1.0, max(0.0, hidden)),
            }
        )
    return rows


run = Benchmark(COLUMNS, _rows)
