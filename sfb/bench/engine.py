"""The engine of the benchmarks: opens a run, times candidates in turn, prints and writes rows.

The file of a benchmark supplies a `Config`, columns, a generator of rows and often a plot; `Benchmark` joins them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from mpi4py import MPI

import sfb
from sfb.environment import describe, header
from sfb.files import write
from sfb.runtime.threads import limit_process
from sfb.tuning.plan import AUTO, Plan
from sfb.tuning.trial import TIMED

__all__ = ["Benchmark", "Column", "Exchanges", "Heading", "Row", "Times", "Timing", "columns", "measure", "settle"]

Row = dict[str, Any]
C = TypeVar("C")

# A candidate that takes _FAR times as long as the fastest, or longer, is timed in the first _PART of the time only.
_FAR, _PART = 2.0, 1 / 3


class Heading(Protocol):
    """Function that prints the lines above the rows."""

    def __call__(self, title: str, *notes: str, **facts: Any) -> None:
        """Print the title, the environment, notes on the columns, and their names.

        Args:
            title: Text that names the measurement.
            notes: Lines that explain columns.
            facts: Entries of the environment, beside those that `describe` returned when the run began.
        """


@dataclass(frozen=True)
class Column:
    """A printed column.

    Attributes:
        key: Key of the values in a row.
        heading: Text above the values.
        show: Function that returns the text of a value.
        width: Number of characters.
        when: Function that returns whether to print the column for a config.
    """

    key: str
    heading: str
    show: Callable[[Any], str] = str
    width: int = 10
    when: Callable[[Any], bool] = lambda config: True


def columns(show: Callable[[Any], str], width: int, /, **headings: str) -> list[Column]:
    """Return columns of one form, by key and heading."""
    return [Column(key, heading, show, width) for key, heading in headings.items()]


@dataclass(frozen=True)
class Benchmark(Generic[C]):
    """A benchmark, which runs when it is called.

    Attributes:
        columns: Columns to print.
        rows: Generator of rows; collective. It takes the ranks, a config, and a function to call before the first row.
            The key "wrong" of a row, if there is one, counts its wrong elements; it is None where none were checked.
        draw: Function that draws rows into a file.
    """

    columns: Iterable[Column]
    rows: Callable[[MPI.Intracomm, C, Heading], Iterator[Row]]
    draw: Callable[[list[Row], Path], None] | None = None

    def __call__(
        self,
        world: MPI.Intracomm,
        config: C,
        *,
        json_file: Path | None = None,
        plot: Path | None = None,
        as_csv: bool = False,
    ) -> list[Row]:
        """Measure, let rank 0 print, write and draw, and return the rows; collective.

        Args:
            world: The ranks to measure on.
            config: What to measure; equal on all ranks.
            json_file: File for config, environment and rows.
            plot: File for a plot; its suffix gives the format.
            as_csv: Print every key of a row as CSV, rather than the columns.
        """
        limit_process(world)
        printer = _Printer(world, [column for column in self.columns if column.when(config)], as_csv=as_csv)
        environment = describe(world)

        def heading(title: str, *notes: str, **facts: Any) -> None:
            environment.update(facts)
            printer.comment(title, *header(environment), *notes)
            printer.heading()

        results = []
        for row in self.rows(world, config, heading):
            printer.row(row)
            results.append(row)
        if world.rank == 0 and json_file is not None:
            _write_json(json_file, dict(vars(config)), environment, results)
        checked = [row["wrong"] for row in results if "wrong" in row]
        if checked:
            printer.comment("not checked" if None in checked else f"wrong: {sum(checked)}")
        if world.rank == 0 and plot is not None and self.draw is not None:
            self.draw(results, plot)
        return results


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often and for how long the candidates of a row are timed.

    Attributes:
        iterations: Timed calls of each candidate.
        warmups: Calls of each before them, at least one.
        seconds: Most time for all candidates; it may end before all iterations are done.
        pause: Seconds without messages before each timed call, in which the network delivers earlier ones.
    """

    iterations: int = 20
    warmups: int = 2
    seconds: float = 20.0
    pause: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Exchanges(Timing):
    """Exchanges of factors, each shape with each number of samples.

    Attributes:
        shapes: (K, D) of each gradient.
        samples: Each S, the same on every rank.
    """

    shapes: Sequence[tuple[int, int]]
    samples: Sequence[int]


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate; every iteration counts as its slowest rank.

    Attributes:
        median: Median over the iterations.
        min: Least of the iterations.
        avg: Mean over the iterations.
        p99: 99th percentile of the iterations.
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

    def each_of(self, calls: int) -> Times:
        """Return the seconds of one of the calls that a candidate makes in a row."""
        parts = ("median", "min", "avg", "p99", "exchange", "rebuild")
        return replace(self, **{part: getattr(self, part) / calls for part in parts})


def measure(
    comm: MPI.Intracomm,
    candidates: Mapping[str, Callable[[], Any]],
    timing: Timing,
    *,
    parts: Callable[[str], tuple[float, float]] = lambda name: (0.0, 0.0),
) -> dict[str, Times]:
    """Time the candidates in turn, each after a barrier; collective.

    After a third of the time only candidates close to the fastest are timed, so that they are timed more often.

    Args:
        comm: The ranks that call.
        candidates: Functions to time, by name.
        timing: How often to time them, and for how long.
        parts: Function that returns the seconds of exchange and of rebuild of a candidate's last call.
    """
    began = perf_counter()
    for _ in range(max(1, timing.warmups)):
        for candidate in candidates.values():
            comm.Barrier()
            candidate()
        if comm.bcast(perf_counter() - began > timing.seconds / 2):
            break
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
    end = perf_counter() + timing.seconds

    def time_in_turn(names: list[str], iterations: int, seconds: float) -> int:
        """Time candidates for at most ``seconds``, each once an iteration; return the number of iterations."""
        began = perf_counter()
        for done, (first, *order) in enumerate(islice(_orders(names), iterations), 1):
            candidates[first]()
            for name in order:
                _spin(timing.pause)
                comm.Barrier()
                start = perf_counter()
                candidates[name]()
                total = perf_counter() - start
                samples[name].append((total, *parts(name)))
            elapsed = perf_counter() - began
            if comm.bcast(elapsed * (done + 1) / done > seconds):
                return done
        return iterations

    done = time_in_turn(list(candidates), timing.iterations, timing.seconds * _PART)
    if done < timing.iterations:
        medians = {name: _reduce(comm, taken).median for name, taken in samples.items()}
        close = [name for name, median in medians.items() if median <= _FAR * min(medians.values())]
        time_in_turn(close, timing.iterations - done, comm.bcast(end - perf_counter()))
    return {name: _reduce(comm, taken) for name, taken in samples.items()}


def settle(
    comm: sfb.Comm,
    factors: sfb.Factors,
    receiver: Any,
    algorithm: str = AUTO,
    *,
    before: Callable[[], Any] = lambda: None,
) -> Plan:
    """Call Allreduce until its algorithm is chosen, so that no trial is among timed calls; collective.

    Args:
        comm: The communicator.
        factors: Factors of this rank.
        receiver: Array or optimizer that takes the sum.
        algorithm: Algorithm to settle, "auto" by default.
        before: Function to call before each Allreduce.

    Returns:
        The plan of later calls.
    """
    while (plan := comm.plan(factors, receiver, algorithm=algorithm)).trial is not None:
        for _ in range(TIMED):  # in a row: a call of `plan` between two would slow the second
            before()
            comm.Allreduce(factors, receiver, algorithm=algorithm)
    return plan


def _orders(names: list[str]) -> Iterator[list[str]]:
    """Yield orders in which each name follows each other name equally often.

    A candidate leaves its data in caches and its messages in the network, and so affects the next. The first name of an
    order only precedes the second: it is not to be timed, and is the same in all orders of a design (E. J. Williams,
    "Experimental designs balanced for the estimation of residual effects of treatments", 1949).
    """
    count = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    drawn = Random(0)  # the same on all ranks
    for first in cycle(names):
        shuffled = drawn.sample(names, count)
        rows = [[shuffled[(step + start) % count] for step in zigzag] for start in range(count)]
        for row in rows if count % 2 == 0 else rows + [row[::-1] for row in rows]:
            yield [first, *row]


def _spin(seconds: float) -> None:
    """Pass time at work: a processor that sleeps takes time to wake up."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def _reduce(comm: MPI.Intracomm, samples: list[tuple[float, float, float]]) -> Times:
    own = np.array(samples)
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


class _Printer:
    """Prints rows on rank 0: aligned under a # heading, or as CSV."""

    def __init__(self, comm: MPI.Intracomm, columns: list[Column], *, as_csv: bool) -> None:
        self._active = comm.rank == 0
        self._columns = columns
        self._csv = as_csv
        self._writer: csv.DictWriter[str] | None = None

    def comment(self, *lines: str) -> None:
        """Print lines that are not data."""
        if self._active:
            for line in lines:
                print(f"# {line}", flush=True)

    def heading(self) -> None:
        """Print the names of the columns; CSV has them in its first row."""
        if self._active and not self._csv:
            print("#" + self._line(column.heading for column in self._columns)[1:], flush=True)

    def _line(self, texts: Iterable[str]) -> str:
        """Return texts in columns; one that is wider than its column keeps a space before it."""
        return "".join(f" {text:>{c.width - 1}}" for text, c in zip(texts, self._columns, strict=True))

    def row(self, row: Row) -> None:
        """Print one row."""
        if not self._active:
            return
        if not self._csv:
            print(self._line(c.show(row[c.key]) for c in self._columns), flush=True)
            return
        if self._writer is None:
            self._writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(row)
        sys.stdout.flush()


def _write_json(path: Path, config: Row, environment: Row, rows: list[Row]) -> None:
    content = {"format": 1, "config": config, "environment": environment, "results": rows}
    write(path, json.dumps(content, indent=1) + "\n")
