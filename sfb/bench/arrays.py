"""Collectives of plain arrays: `sfb.Comm` beside MPI itself, and beside the limit of memory or links."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.arrays.dispatch import SETTLED
from sfb.bench.engine import Column, Printer, Times, measure, microseconds, write_json
from sfb.environment import describe, header
from sfb.runtime.threads import limit_process

__all__ = ["COLLECTIVES", "COLUMNS", "OPS", "TYPES", "Config", "draw", "run"]

OPS = {"sum": MPI.SUM, "prod": MPI.PROD, "max": MPI.MAX, "min": MPI.MIN}
COLLECTIVES = ("allreduce", "reduce_scatter_block", "allgather")
TYPES = ("float32", "float64", "int32", "int64")

# Calls in a row that make one sample: of so many bytes together, but at most so many.
_TOGETHER, _MOST = 1 << 22, 100
# Bytes by which memory and links are measured, and how often.
_PROBE, _PROBES = 1 << 24, 5


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Bytes of the arrays; of the larger one where one is a part.
        dtype: Of `TYPES`.
        op: Of `OPS`.
        collective: Of `COLLECTIVES`.
        memory: "private" arrays, or "shared" ones for `sfb.Comm`: all ranks' arrays lie in memory that the node shares,
            and so does one result.
        link: Bytes per second of a node's link each way; measured if None.
        iterations: Timed samples of each candidate.
        warmups: Samples before.
        seconds: Most time for one size.
        pause: Seconds without messages before each sample.
        check: Compare with MPI's result, and the bits of the ranks.
    """

    sizes: Sequence[int]
    dtype: str = "float32"
    op: str = "sum"
    collective: str = "allreduce"
    memory: str = "private"
    link: float | None = None
    iterations: int = 20
    warmups: int = 2
    seconds: float = 5.0
    pause: float = 0.0
    check: bool = True


def _gigabytes(rate: float) -> str:
    return f"{rate:.3g}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f}"


COLUMNS = [Column("bytes", "size(B)", width=11), Column("count", "count", width=11)]
for _name in ("mpi", "sfb"):
    COLUMNS += [
        Column(f"{_name}_seconds", f"{_name}(us)", microseconds, 12),
        Column(f"{_name}_algbw", "algbw", _gigabytes, 10),
        Column(f"{_name}_busbw", "busbw", _gigabytes, 10),
        Column(f"{_name}_limit", "%limit", _percent, 8),
    ]
COLUMNS += [Column("speedup", "mpi/sfb", "{:.2f}".format, 9), Column("wrong", "#wrong", width=8)]


def run(
    world: MPI.Intracomm, config: Config, *, json_file: Path | None = None, as_csv: bool = False
) -> list[dict[str, Any]]:
    """Measure, print on rank 0, and return the rows; collective."""
    limit_process(world)
    environment = describe(world)
    printer = Printer(world, COLUMNS, as_csv=as_csv)
    results = []
    with sfb.Comm(world) as comm:
        per_node, nodes = _layout(comm)
        if nodes > 1:
            rate = config.link or _link_rate(world, per_node)
            times = "2" * (config.collective == COLLECTIVES[0])
            limit = f"limit: {times}(N−1)/N of the bytes each way over a link of {rate / 1e9:.3g} GB/s, {nodes} nodes"
        else:
            rate = _memory_rate(world)
            limit = f"limit: arrays read and results written once, at the {rate / 1e9:.3g} GB/s of ranks that copy"
        printer.comment(
            [
                f"sfb bench allreduce: {config.collective} of plain arrays, {config.dtype}, {config.op}, "
                f"{config.memory} memory",
                *header(environment),
                "time: of a call, median over samples of the slowest rank; algbw = bytes/time in GB/s, "
                f"busbw = algbw·{'2' * (config.collective == COLLECTIVES[0])}(P−1)/P",
                limit,
            ]
        )
        printer.heading()
        for nbytes in config.sizes:
            row = _measure(comm, world, config, nbytes, nodes)
            whole = config.collective == COLLECTIVES[0]
            traffic = (1 + whole) * nbytes * (nodes - 1) / nodes
            if nodes == 1:
                traffic = nbytes * (world.size + (world.size if whole and config.memory == "private" else 1))
            row |= {f"{name}_limit": traffic / rate / row[f"{name}_seconds"] for name in ("mpi", "sfb")}
            printer.row(row)
            results.append(row)
    wrong = sum(row["wrong"] or 0 for row in results)
    printer.comment([f"wrong: {wrong}" if config.check else "not checked"])
    if json_file is not None and world.rank == 0:
        write_json(json_file, asdict(config), environment, results)
    return results


def _layout(comm: sfb.Comm) -> tuple[int, int]:
    """Return the most ranks of a node, and the number of nodes."""
    nodes = comm.allreduce(int(comm.node.rank == 0))
    return comm.allreduce(comm.node.size, MPI.MAX), nodes


def _best(world: MPI.Intracomm, once: Callable[[], Any]) -> float:
    """Return the least seconds of the slowest rank."""
    best = np.inf
    for _ in range(_PROBES):
        world.Barrier()
        began = perf_counter()
        once()
        best = min(best, world.allreduce(perf_counter() - began, MPI.MAX))
    return best


def _memory_rate(world: MPI.Intracomm) -> float:
    """Return the bytes per second that all ranks of the node read and write together when they copy."""
    source, target = np.ones((2, _PROBE // 4), np.float32)
    return world.size * 2 * source.nbytes / _best(world, lambda: np.copyto(target, source))


def _link_rate(world: MPI.Intracomm, per_node: int) -> float:
    """Return the bytes per second that a node sends and receives at once, all nodes in a ring."""
    sent, received = np.ones((2, _PROBE // per_node), np.uint8)
    to, source = ((world.rank + step) % world.size for step in (per_node, -per_node))
    return per_node * sent.nbytes / _best(world, lambda: world.Sendrecv(sent, to, recvbuf=received, source=source))


def _measure(comm: sfb.Comm, world: MPI.Intracomm, config: Config, nbytes: int, nodes: int) -> dict[str, Any]:
    dtype, op = np.dtype(config.dtype), OPS[config.op]
    count = max(1, nbytes // dtype.itemsize)
    rng = np.random.default_rng((count, world.rank))
    # Products of many ranks stay small.
    mine = (rng.uniform(0.5, 1.5, count) if dtype.kind == "f" else rng.integers(-2, 3, count)).astype(dtype)
    theirs, given, taken = np.empty_like(mine), mine, np.empty_like(mine)
    if config.memory == "shared":
        arrays = comm.shared((comm.allreduce(comm.node.size, MPI.MAX), count), dtype)
        given, taken = arrays[comm.node.rank], comm.shared(count, dtype)
        given[:] = mine
    calls = {"mpi": partial(world.Allreduce, mine, theirs, op), "sfb": partial(comm.Allreduce, given, taken, op)}
    if config.collective != COLLECTIVES[0]:
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
    inner = max(1, min(_MOST, _TOGETHER // max(1, nbytes)))

    def loop(call: Callable[[], None]) -> None:
        for _ in range(inner):
            call()

    for _ in range(SETTLED if nodes > 1 else 1):
        calls["sfb"]()
    times = measure(
        world,
        {name: partial(loop, call) for name, call in calls.items()},
        iterations=config.iterations,
        warmups=config.warmups,
        seconds=config.seconds,
        pause=config.pause,
    )
    row: dict[str, Any] = {"bytes": mine.nbytes, "count": mine.size, "dtype": config.dtype, "op": config.op}
    bus = (world.size - 1) / world.size
    for name, taken_by in times.items():
        row |= _rates(name, taken_by, inner, mine.nbytes, (1 + (config.collective == COLLECTIVES[0])) * bus)
    row["speedup"] = row["mpi_seconds"] / row["sfb_seconds"]
    row["wrong"] = _wrong(world, theirs, taken, same=taken.size == mine.size) if config.check else None
    return row


def _rates(name: str, times: Times, inner: int, nbytes: int, bus: float) -> dict[str, Any]:
    algbw = nbytes * inner / times.median / 1e9
    return {
        f"{name}_seconds": times.median / inner,
        f"{name}_min": times.min / inner,
        f"{name}_p99": times.p99 / inner,
        f"{name}_algbw": algbw,
        f"{name}_busbw": algbw * bus,
        f"{name}_iterations": times.iterations,
    }


def _wrong(world: MPI.Intracomm, theirs: np.ndarray, ours: np.ndarray, *, same: bool) -> int:
    """Return the elements of all ranks that are not MPI's within rounding, or all where bits differ."""
    if same and len(set(world.allgather(hashlib.blake2b(memoryview(ours)).digest()))) > 1:
        return ours.size
    if ours.dtype.kind == "i":
        off = ours != theirs
    else:
        # Of one sign, so a sum is as large as its terms together.
        off = ~(np.abs(ours - theirs) <= 2 * world.size * np.finfo(ours.dtype).eps * np.abs(theirs))
    return int(world.allreduce(int(off.sum())))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
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
