"""Collectives of plain arrays: `sfb.Comm` beside MPI itself, and beside the limit of memory or links."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.arrays.dispatch import SETTLED
from sfb.bench.engine import Benchmark, Column, Heading, Row, Times, Timing, measure
from sfb.units import format_rate, microseconds

__all__ = ["COLLECTIVES", "COLUMNS", "OPS", "TYPES", "Config", "draw", "memory_rate", "run"]

OPS = {"sum": MPI.SUM, "prod": MPI.PROD, "max": MPI.MAX, "min": MPI.MIN}
COLLECTIVES = ("allreduce", "reduce_scatter_block", "allgather")
TYPES = ("float32", "float64", "int32", "int64")

# A sample is several calls in a row: of _TOGETHER bytes in all, but at most _MOST calls.
_TOGETHER, _MOST = 1 << 22, 100
# Bytes by which the rates of memory and links are measured.
_PROBE = 1 << 24
_PROBES = Timing(iterations=5, warmups=1, seconds=30.0)


@dataclass(frozen=True, kw_only=True)
class Config(Timing):
    """What to measure.

    Attributes:
        sizes: Bytes of the arrays; of the larger one where one is a part.
        dtype: Name in `TYPES`.
        op: Name in `OPS`.
        collective: Name in `COLLECTIVES`.
        memory: "private" arrays, or "shared" ones for `sfb.Comm`: all ranks' arrays lie in memory that the node shares,
            and so does one result.
        link: Bytes per second of a node's link each way; measured if None.
        check: Compare with MPI's result, and the bits of the ranks.
    """

    sizes: Sequence[int]
    dtype: str = "float32"
    op: str = "sum"
    collective: str = "allreduce"
    memory: str = "private"
    link: float | None = None
    seconds: float = 5.0
    check: bool = True

    @property
    def whole(self) -> bool:
        """Whether every rank gives and takes a whole array, so that twice the bytes travel."""
        return self.collective == "allreduce"


COLUMNS = [Column("bytes", "size(B)", width=11), Column("count", "count", width=11)]
for _name in ("mpi", "sfb"):
    COLUMNS += [
        Column(f"{_name}_seconds", f"{_name}(us)", microseconds, 12),
        Column(f"{_name}_algbw", "algbw", "{:.3g}".format, 10),
        Column(f"{_name}_busbw", "busbw", "{:.3g}".format, 10),
        Column(f"{_name}_limit", "%limit", lambda part: f"{100 * part:.0f}", 8),
    ]
COLUMNS += [
    Column("speedup", "mpi/sfb", "{:.2f}".format, 9),
    Column("added", "added(us)", lambda seconds: microseconds(seconds, 2), 12),
    Column("wrong", "#wrong", width=8),
]


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    with sfb.Comm(world) as comm:
        per_node, nodes = _layout(comm)
        twice = "2" * config.whole
        if nodes > 1:
            rate = config.link or _link_rate(world, per_node)
            limit = f"limit: {twice}(N−1)/N of the bytes each way over a link of {format_rate(rate)}, {nodes} nodes"
        else:
            rate = memory_rate(world)
            limit = f"limit: arrays read and results written once, at the {format_rate(rate)} of ranks that copy"
        heading(
            f"sfb bench allreduce: {config.collective} of plain arrays, {config.dtype}, {config.op}, "
            f"{config.memory} memory",
            "time: of a call, median over samples of the slowest rank; algbw = bytes/time in GB/s, "
            f"busbw = algbw·{twice}(P−1)/P; added = sfb − mpi",
            limit,
        )
        for nbytes in config.sizes:
            row = _measure(comm, world, config, nbytes, nodes)
            traffic = (1 + config.whole) * nbytes * (nodes - 1) / nodes
            if nodes == 1:
                results = world.size if config.whole and config.memory == "private" else 1
                traffic = nbytes * (world.size + results)
            row |= {f"{name}_limit": traffic / rate / row[f"{name}_seconds"] for name in ("mpi", "sfb")}
            yield row


def _layout(comm: sfb.Comm) -> tuple[int, int]:
    """Return the most ranks of a node, and the number of nodes; collective."""
    nodes = comm.allreduce(int(comm.node.rank == 0))
    return comm.allreduce(comm.node.size, MPI.MAX), nodes


def memory_rate(world: MPI.Intracomm) -> float:
    """Return the bytes per second that the ranks, of one node, read and write together when they copy; collective."""
    source, target = np.ones((2, _PROBE // 4), np.float32)
    times = measure(world, {"copy": lambda: np.copyto(target, source)}, _PROBES)
    return world.size * 2 * source.nbytes / times["copy"].min


def _link_rate(world: MPI.Intracomm, per_node: int) -> float:
    """Return the bytes per second that a node sends and receives at once, all nodes in a ring; collective."""
    sent, received = np.ones((2, _PROBE // per_node), np.uint8)
    to, source = ((world.rank + step) % world.size for step in (per_node, -per_node))
    ring = partial(world.Sendrecv, sent, to, recvbuf=received, source=source)
    return per_node * sent.nbytes / measure(world, {"ring": ring}, _PROBES)["ring"].min


def _measure(comm: sfb.Comm, world: MPI.Intracomm, config: Config, nbytes: int, nodes: int) -> Row:
    dtype, op = np.dtype(config.dtype), OPS[config.op]
    count = max(1, nbytes // dtype.itemsize)
    rng = np.random.default_rng((count, world.rank))
    # Values near 1 keep the products of many ranks small.
    mine = (rng.uniform(0.5, 1.5, count) if dtype.kind == "f" else rng.integers(-2, 3, count)).astype(dtype)
    theirs, given, taken = np.empty_like(mine), mine, np.empty_like(mine)
    if config.memory == "shared":
        arrays = comm.shared((comm.allreduce(comm.node.size, MPI.MAX), count), dtype)
        given, taken = arrays[comm.node.rank], comm.shared(count, dtype)
        given[:] = mine
    calls = {"mpi": partial(world.Allreduce, mine, theirs, op), "sfb": partial(comm.Allreduce, given, taken, op)}
    if not config.whole:
        part = max(1, count // world.size)
        arguments: tuple[Any, ...] = () if config.collective == "allgather" else (op,)
        mine = np.resize(mine, part * world.size)
        if config.collective == "allgather":
            send, results = mine[:part].copy(), np.empty((2, mine.size), dtype)
        else:
            send, results = mine, np.empty((2, part), dtype)
        theirs, taken = results
        calls = {
            name: partial(getattr(of, config.collective.capitalize()), send, result, *arguments)
            for name, of, result in (("mpi", world, theirs), ("sfb", comm, taken))
        }
    in_a_row = max(1, min(_MOST, _TOGETHER // max(1, nbytes)))

    def repeat(call: Callable[[], None]) -> None:
        for _ in range(in_a_row):
            call()

    for _ in range(SETTLED if nodes > 1 else 1):
        calls["sfb"]()
    times = measure(world, {name: partial(repeat, call) for name, call in calls.items()}, config)
    row: Row = {"bytes": mine.nbytes, "count": mine.size, "dtype": config.dtype, "op": config.op}
    bus = (1 + config.whole) * (world.size - 1) / world.size
    for name, of_sample in times.items():
        row |= _rates(name, of_sample.each_of(in_a_row), mine.nbytes, bus)
    row["speedup"] = row["mpi_seconds"] / row["sfb_seconds"]
    row["added"] = row["sfb_seconds"] - row["mpi_seconds"]
    row["wrong"] = _wrong(world, theirs, taken, same=taken.size == mine.size) if config.check else None
    return row


def _rates(name: str, times: Times, nbytes: int, bus: float) -> Row:
    algbw = nbytes / times.median / 1e9
    return {
        f"{name}_seconds": times.median,
        f"{name}_min": times.min,
        f"{name}_p99": times.p99,
        f"{name}_algbw": algbw,
        f"{name}_busbw": algbw * bus,
        f"{name}_iterations": times.iterations,
    }


def _wrong(world: MPI.Intracomm, theirs: np.ndarray, ours: np.ndarray, *, same: bool) -> int:
    """Return the elements of all ranks that are not MPI's within rounding, or all where bits differ; collective.

    Args:
        world: The ranks that compare.
        theirs: MPI's result.
        ours: The library's result.
        same: Every rank has the same result.
    """
    if same and len(set(world.allgather(hashlib.blake2b(memoryview(ours)).digest()))) > 1:
        return ours.size
    if ours.dtype.kind == "i":
        off = ours != theirs
    else:
        # All terms have one sign, so a sum is as large as its terms together.
        off = ~(np.abs(ours - theirs) <= 2 * world.size * np.finfo(ours.dtype).eps * np.abs(theirs))
    return int(world.allreduce(int(off.sum())))


def draw(rows: list[Row], path: Path) -> None:
    """Draw time against size, and how much longer MPI takes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    times, ratios = figure.subplots(1, 2)
    sizes = [row["bytes"] for row in rows]
    for name, style, label in (("mpi", "s-", "MPI"), ("sfb", "o-", "sfb.Comm")):
        times.plot(sizes, [row[f"{name}_seconds"] * 1e6 for row in rows], style, label=label, markersize=4)
    times.plot(sizes, [row["sfb_limit"] * row["sfb_seconds"] * 1e6 for row in rows], "k:", label="limit")
    times.set_yscale("log")
    times.set_ylabel("time of an Allreduce (µs)")
    times.legend()
    ratios.axhline(1, color="k", linewidth=0.8)
    ratios.plot(sizes, [row["speedup"] for row in rows], "o-", markersize=4)
    ratios.set_ylim(0)
    ratios.set_ylabel("time of MPI / time of sfb.Comm")
    for panel in (times, ratios):
        panel.set_xscale("log", base=2)
        panel.set_xlabel("bytes of the array")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


run = Benchmark(COLUMNS, _rows, draw)
