"""What passing plain arrays through `sfb.Comm` costs beside mpi4py itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Column, Printer, measure, write_json
from sfb.environment import describe, header
from sfb.runtime.threads import limit_process

__all__ = ["COLUMNS", "Config", "run"]


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Bytes of the arrays.
        inner: Calls in a row that make one sample.
        iterations: Timed samples of each candidate.
        warmups: Samples before.
        seconds: Most time for one size.
    """

    sizes: Sequence[int]
    inner: int = 100
    iterations: int = 50
    warmups: int = 2
    seconds: float = 5.0


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}"


COLUMNS = [
    Column("bytes", "size(B)", width=10),
    Column("mpi", "mpi(us)", _us, 12),
    Column("unchecked", "check=False", _us, 12),
    Column("comm", "comm(us)", _us, 12),
    Column("added", "added(us)", _us, 12),
    Column("ratio", "comm/mpi", "{:.3f}".format, 10),
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
            "sfb bench overhead: Allreduce of plain arrays",
            *header(environment),
            f"time: of a call, median over samples of {config.inner} calls in a row, slowest rank; added = comm − mpi",
        ]
    )
    printer.heading()
    results = []
    with sfb.Comm(world) as comm, sfb.Comm(world, check=False) as unchecked:
        candidates = {"mpi": world, "unchecked": unchecked, "comm": comm}
        for nbytes in config.sizes:
            send, receive = (np.zeros(max(1, nbytes // 8)) for _ in range(2))

            def loop(reduce: Any, send: np.ndarray = send, receive: np.ndarray = receive) -> None:
                for _ in range(config.inner):
                    reduce(send, receive)

            times = measure(
                world,
                {name: lambda reduce=one.Allreduce: loop(reduce) for name, one in candidates.items()},  # type: ignore[misc]
                iterations=config.iterations,
                warmups=config.warmups,
                seconds=config.seconds,
            )
            row: dict[str, Any] = {"bytes": send.nbytes}
            row |= {name: taken.median / config.inner for name, taken in times.items()}
            row |= {"added": row["comm"] - row["mpi"], "ratio": row["comm"] / row["mpi"]}
            printer.row(row)
            results.append(row)
    if json_file is not None and world.rank == 0:
        write_json(json_file, asdict(config), environment, results)
    return results
