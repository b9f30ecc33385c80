"""The engine of the benchmarks: candidates timed in turn, rows reduced over ranks and printed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

__all__ = ["Column", "Printer", "Sample", "Times", "measure", "microseconds", "write_json"]


# A candidate that takes so many times as long as the fastest is timed in this part of the time only.
_FAR, _PART = 2.0, 1 / 3


@dataclass(frozen=True)
class Sample:
    """One timed call on this rank: seconds in all, of communication, and of rebuilding."""

    total: float
    exchange: float
    rebuild: float


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate; every iteration counts as its slowest rank.

    Attributes:
        median: Over the iterations.
        min: Likewise.
        avg: Likewise.
        p99: Likewise.
        exchange: Median seconds of communication, waiting included.
        rebuild: Median seconds of forming and applying the sum.
        iterations: How many were timed.
    """

    median: float
    min: float
    avg: float
    p99: float
    exchange: float
    rebuild: float
    iterations: int


def measure(
    comm: MPI.Intracomm,
    candidates: Mapping[str, Callable[[], Any]],
    *,
    iterations: int,
    warmups: int,
    seconds: float,
    pause: float = 0.0,
    parts: Callable[[str], tuple[float, float]] = lambda name: (0.0, 0.0),
) -> dict[str, Times]:
    """Time the candidates in turn, each after a barrier; collective.

    Args:
        comm: The ranks that call.
        candidates: By name; each does its work.
        iterations: Timed calls of each.
        warmups: Calls of each before, at least one.
        seconds: Most time to spend; fewer iterations are timed where they would take longer. After a third of it what
            is far slower than the fastest is left out, so that what is close is timed more often.
        pause: Seconds without messages before each call: what the one before has left in the network is gone then.
        parts: Returns the seconds of exchange and of rebuild of a candidate's call, once that has been timed.
    """
    began = perf_counter()
    for _ in range(max(1, warmups)):
        for candidate in candidates.values():
            comm.Barrier()
            candidate()
        if comm.bcast(perf_counter() - began > seconds / 2):
            break
    samples: dict[str, list[Sample]] = {name: [] for name in candidates}
    end = perf_counter() + seconds

    def take_turns(names: list[str], iterations: int, seconds: float) -> int:
        """Time each so often, for so many seconds at most; return how often that was."""
        began = perf_counter()
        for done, (first, *order) in enumerate(islice(_orders(names), iterations), 1):
            candidates[first]()
            for name in order:
                _idle(pause)
                comm.Barrier()
                start = perf_counter()
                candidates[name]()
                total = perf_counter() - start
                samples[name].append(Sample(total, *parts(name)))
            elapsed = perf_counter() - began
            if comm.bcast(elapsed * (done + 1) / done > seconds):
                return done
        return iterations

    done = take_turns(list(candidates), iterations, seconds * _PART)
    if done < iterations:
        medians = {name: _reduce(comm, taken).median for name, taken in samples.items()}
        close = [name for name, median in medians.items() if median <= _FAR * min(medians.values())]
        take_turns(close, iterations - done, comm.bcast(end - perf_counter()))
    return {name: _reduce(comm, taken) for name, taken in samples.items()}


def _orders(names: list[str]) -> Iterator[list[str]]:
    """Yield orders in which each name comes after each other one equally often: a large neighbour leaves cold caches.

    And full networks. Of an order the first is not to be timed, so that the next has a neighbour, too: in all orders of
    a design it is the same. E. J. Williams, "Experimental designs balanced for the estimation of residual effects of
    treatments", 1949; what comes two before a name is left to chance.
    """
    count = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    drawn = Random(0)  # the same on all ranks
    for first in cycle(names):
        shuffled = drawn.sample(names, count)
        rows = [[shuffled[(step + start) % count] for step in zigzag] for start in range(count)]
        for row in rows if count % 2 == 0 else rows + [row[::-1] for row in rows]:
            yield [first, *row]


def _idle(seconds: float) -> None:
    """Let time pass at work: a processor that sleeps takes its time to wake up."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def _reduce(comm: MPI.Intracomm, samples: list[Sample]) -> Times:
    own = np.array([(s.total, s.exchange, s.rebuild) for s in samples])
    slowest = np.empty_like(own)
    comm.Allreduce(own, slowest, MPI.MAX)
    total = slowest[:, 0]
    return Times(
        median=float(np.median(total)),
        min=float(total.min()),
        avg=float(total.mean()),
        p99=float(np.percentile(total, 99)),
        exchange=float(np.median(slowest[:, 1])),
        rebuild=float(np.median(slowest[:, 2])),
        iterations=len(samples),
    )


@dataclass(frozen=True)
class Column:
    """A printed column: the key of a row, its heading, and how a value is shown."""

    key: str
    heading: str
    show: Callable[[Any], str] = str
    width: int = 10


def microseconds(seconds: float) -> str:
    """Return how a column shows seconds."""
    return f"{seconds * 1e6:.1f}"


class Printer:
    """Prints rows on rank 0: aligned under a # heading, or as CSV.

    Args:
        comm: Only rank 0 of it prints.
        columns: What to print of a row.
        as_csv: CSV with every key of a row instead.
    """

    def __init__(self, comm: MPI.Intracomm, columns: Iterable[Column], *, as_csv: bool) -> None:
        self._active = comm.rank == 0
        self._columns = list(columns)
        self._csv = as_csv
        self._writer: csv.DictWriter[str] | None = None

    def comment(self, lines: Iterable[str]) -> None:
        """Print lines that are not data."""
        if self._active:
            for line in lines:
                print(f"# {line}", flush=True)

    def heading(self) -> None:
        """Print the names of the columns; CSV has them in its first row."""
        if self._active and not self._csv:
            names = "".join(f"{column.heading:>{column.width}}" for column in self._columns)
            print("#" + names[1:], flush=True)

    def row(self, row: dict[str, Any]) -> None:
        """Print one row."""
        if not self._active:
            return
        if not self._csv:
            print("".join(f"{c.show(row[c.key]):>{c.width}}" for c in self._columns), flush=True)
            return
        if self._writer is None:
            self._writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(row)
        sys.stdout.flush()


def write_json(path: Path, config: dict[str, Any], environment: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write a benchmark's results for programs."""
    content = {"format": 1, "config": config, "environment": environment, "results": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
