"""How much of an exchange is hidden behind computation, as OMB's osu_iallreduce reports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Column, Printer, measure, microseconds, write_json
from sfb.environment import describe, header
from sfb.runtime.threads import limit_process

__all__ = ["COLUMNS", "Config", "run"]

# Matrices of the computation that exchanges are hidden behind.
_SIDE = 128


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        shapes: (K, D), each to be measured.
        samples: S of every rank, likewise.
        iterations: Timed calls of each candidate.
        warmups: Calls before.
        seconds: Most time for the candidates of one size.
    """

    shapes: Sequence[tuple[int, int]]
    samples: Sequence[int]
    iterations: int = 20
    warmups: int = 2
    seconds: float = 20.0


COLUMNS = [
    Column("K", "K", width=7),
    Column("D", "D", width=7),
    Column("S", "S", width=6),
    Column("candidate", "candidate", width=14),
    Column("pure", "pure(us)", microseconds, 12),
    Column("compute", "compute(us)", microseconds, 12),
    Column("total", "total(us)", microseconds, 12),
    Column("overlap", "overlap(%)", "{:.1f}".format, 11),
]


def run(
    world: MPI.Intracomm, config: Config, *, json_file: Path | None = None, as_csv: bool = False
) -> list[dict[str, Any]]:
    """Measure, print on rank 0, and return the rows; collective."""
    limit_process(world)
    environment = describe(world)
    printer = Printer(world, COLUMNS, as_csv=as_csv)
    printer.comment(
        [
            "sfb bench overlap: Iallreduce",
            *header(environment),
            "pure: begin and wait; total: begin, compute for as long, wait; overlap = 1 − (total − compute)/pure",
            "mpi: the dense gradient, formed already; thread, poll: factors into a shared array, sfb.Comm(progress=)",
        ]
    )
    printer.heading()
    results = []
    comms = {progress: sfb.Comm(world, progress=progress) for progress in ("thread", "poll")}
    for rows, columns in config.shapes:
        gradient = np.zeros((rows, columns), np.float32)
        target = comms["thread"].shared((rows, columns))
        for samples in config.samples:
            factors = sfb.Factors(np.ones((samples, rows), np.float32), np.ones((samples, columns), np.float32))
            begin: dict[str, Callable[[], Any]] = {"mpi": lambda g=gradient: world.Iallreduce(MPI.IN_PLACE, g)}  # type: ignore[misc]
            for name, comm in comms.items():
                comm.Allreduce(factors, target)
                while comm.plan(factors, target).trial is not None:
                    comm.Allreduce(factors, target)
                begin[name] = lambda comm=comm, f=factors, g=target: comm.Iallreduce(f, g)  # type: ignore[misc]
            for row in _measure(world, config, begin):
                row = {"K": rows, "D": columns, "S": samples, **row}
                printer.row(row)
                results.append(row)
    for comm in comms.values():
        comm.free()
    if json_file is not None and world.rank == 0:
        write_json(json_file, asdict(config), environment, results)
    return results


def _measure(world: MPI.Intracomm, config: Config, begin: dict[str, Callable[[], Any]]) -> list[dict[str, Any]]:
    options: dict[str, Any] = {
        "iterations": config.iterations,
        "warmups": config.warmups,
        "seconds": config.seconds / 2,
    }

    def pure(start: Callable[[], Any]) -> None:
        start().Wait()

    alone = measure(world, {name: lambda s=start: pure(s) for name, start in begin.items()}, **options)  # type: ignore[misc]
    a, out = np.ones((2, _SIDE, _SIDE), np.float32)
    computed: dict[str, list[float]] = {name: [] for name in begin}

    def both(name: str) -> None:
        request = begin[name]()
        began = perf_counter()
        while perf_counter() - began < alone[name].median:
            np.dot(a, a, out=out)
        computed[name].append(perf_counter() - began)
        request.Wait()

    together = measure(world, {name: lambda n=name: both(n) for name in begin}, **options)  # type: ignore[misc]
    rows = []
    for name in begin:
        compute = world.allreduce(float(np.median(computed[name])), MPI.MAX)
        hidden = 1 - (together[name].median - compute) / alone[name].median
        rows.append(
            {
                "candidate": name,
                "pure": alone[name].median,
                "compute": compute,
                "total": together[name].median,
                "overlap": 100 * min(1.0, max(0.0, hidden)),
            }
        )
    return rows
