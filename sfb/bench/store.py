"""The decentralised store beside the collective engine: time per clock, latency, messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Benchmark, Column, Heading, Row, Times, Timing, columns, measure, settle
from sfb.units import milliseconds

__all__ = ["COLUMNS", "Config", "run"]

_ENGINE = "Allreduce"


@dataclass(frozen=True, kw_only=True)
class Config(Timing):
    """What to measure.

    Attributes:
        shape: (K, D) of the table.
        samples: Each S of a rank's update.
        topologies: Names of graphs.
    """

    shape: tuple[int, int] = (4096, 4096)
    samples: Sequence[int] = (1, 10)
    topologies: Sequence[str] = ("halton", "ring", "complete")


COLUMNS = [
    *columns(str, 13, S="S", topology="topology"),
    *columns(str, 7, degree="degree", diameter="diam"),
    *columns(milliseconds, 12, latency="latency(ms)", seconds="clock(ms)", p99="p99"),
    Column("updates", "updates/s", "{:.0f}".format, 10),
    Column("sent", "sent(B)", width=11),
    Column("messages", "messages", "{:.1f}".format, 9),
    Column("staleness", "stale", width=6),
    Column("ratio", "clock/Allreduce", "{:.2f}".format, 16),
]


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    heading(
        f"sfb bench store: a table of {config.shape[0]}×{config.shape[1]} float32, SGD, BSP, polling",
        "clock: push, clock and read, until the update of every rank is applied, median of the slowest rank",
        "latency: of a clock with nothing to push, that is until all ranks know of the last one",
        "sent, messages: of a clock, the busiest rank; stale: most clocks that a read was behind",
        f"{_ENGINE}: Comm.Allreduce of the same factors, a replica per rank",
    )
    w0 = np.zeros(config.shape, np.float32)
    rule = sfb.optim.SGD(lr=1e-3)
    with ExitStack() as stack:
        comm = stack.enter_context(sfb.Comm(world))
        receiver = rule.bind(w0.copy())
        stores = {
            name: stack.enter_context(sfb.Store(world, {"w": w0}, rule, topology=name)) for name in config.topologies
        }
        for samples in config.samples:
            rng = np.random.default_rng((samples, world.rank))
            u, v = (rng.standard_normal((samples, n), dtype=np.float32) for n in config.shape)
            factors = sfb.Factors(u, v)
            settle(comm, factors, receiver)
            calls: dict[str, Callable[[], None]] = {_ENGINE: partial(comm.Allreduce, factors, receiver)}
            for name, store in stores.items():
                calls[name] = partial(_clock, store, factors)
                calls[_empty(name)] = partial(_clock, store, None)
            times = measure(world, calls, config)
            size = {"S": samples, "K": config.shape[0], "D": config.shape[1]}
            nothing = {"degree": "-", "diameter": "-", "sent": "-", "messages": 0.0, "staleness": "-", "latency": None}
            yield size | _clocks(world, _ENGINE, times) | nothing
            for name, store in stores.items():
                latency = {"latency": times[_empty(name)].median}
                yield size | _clocks(world, name, times) | _traffic(world, store, factors) | latency


def _empty(name: str) -> str:
    """Return the name of the candidate that pushes nothing to a store."""
    return f"{name}, empty"


def _clock(store: sfb.Store, factors: sfb.Factors | None) -> None:
    """Do one step of training without the training."""
    if factors is not None:
        store.push("w", factors)
    store.clock()
    _ = store["w"]


def _clocks(world: MPI.Intracomm, name: str, times: dict[str, Times]) -> Row:
    """Return the part of a row that is timed."""
    seconds = times[name].median
    return {
        "topology": name,
        "seconds": seconds,
        "p99": times[name].p99,
        "updates": world.size / seconds,
        "ratio": seconds / times[_ENGINE].median,
    }


def _traffic(world: MPI.Intracomm, store: sfb.Store, factors: sfb.Factors) -> Row:
    """Do one clock and return its traffic; collective."""
    store.flush()
    world.Barrier()
    before = store.stats()
    _clock(store, factors)
    store.flush()
    after = store.stats()
    sent = after.sent_bytes - before.sent_bytes, after.sent_messages - before.sent_messages
    most = [world.allreduce(value, MPI.MAX) for value in (*sent, max(after.staleness))]
    graph = store.topology
    return {
        "degree": graph.degree,
        "diameter": graph.diameter,
        "sent": most[0],
        "messages": float(most[1]),
        "staleness": most[2],
    }


run = Benchmark(COLUMNS, _rows)
