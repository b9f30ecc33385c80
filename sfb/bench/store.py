"""The decentralised store beside the collective engine: time per clock, latency, messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Column, Printer, measure, write_json
from sfb.environment import describe, header
from sfb.runtime.threads import limit_process

__all__ = ["COLUMNS", "Config", "run"]

_ENGINE = "Allreduce"


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        shape: (K, D) of the table.
        samples: S of each rank's update, one row after the other.
        topologies: Names.
        iterations: Timed clocks of each candidate.
        warmups: Clocks before.
        seconds: Most time for one S.
    """

    shape: tuple[int, int] = (4096, 4096)
    samples: Sequence[int] = (1, 10)
    topologies: Sequence[str] = ("halton", "ring", "complete")
    iterations: int = 20
    warmups: int = 2
    seconds: float = 20.0


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}"


COLUMNS = [
    Column("S", "S", width=6),
    Column("topology", "topology", width=13),
    Column("degree", "degree", width=7),
    Column("diameter", "diam", width=5),
    Column("latency", "latency(ms)", _ms, 12),
    Column("seconds", "clock(ms)", _ms, 11),
    Column("p99", "p99", _ms, 11),
    Column("updates", "updates/s", "{:.0f}".format, 10),
    Column("sent", "sent(B)", width=11),
    Column("messages", "messages", "{:.1f}".format, 9),
    Column("staleness", "stale", width=6),
    Column("ratio", "clock/Allreduce", "{:.2f}".format, 16),
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
            f"sfb bench store: a table of {config.shape[0]}×{config.shape[1]} float32, SGD, BSP, polling",
            *header(environment),
            "clock: push, clock and read, until the update of every rank is applied, median of the slowest rank",
            "latency: of a clock with nothing to push, that is until all ranks know of the last one",
            "sent, messages: of a clock, the busiest rank; stale: most clocks that a read was behind",
            f"{_ENGINE}: Comm.Allreduce of the same factors, a replica per rank",
        ]
    )
    printer.heading()
    results = []
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
            # Close candidates for the engine's algorithm are timed first.
            while comm.plan(factors, receiver).trial is not None:
                comm.Allreduce(factors, receiver)
            calls: dict[str, Callable[[], None]] = {_ENGINE: partial(comm.Allreduce, factors, receiver)}
            for name, store in stores.items():
                calls[name] = partial(_clock, store, factors)
                calls[f"{name}, empty"] = partial(_clock, store, None)
            times = measure(world, calls, iterations=config.iterations, warmups=config.warmups, seconds=config.seconds)
            engine = times[_ENGINE]
            for name in (_ENGINE, *stores):
                its = times[name]
                row: dict[str, Any] = {"S": samples, "K": config.shape[0], "D": config.shape[1], "topology": name}
                row |= {"degree": "-", "diameter": "-", "latency": None, "messages": 0.0, "staleness": "-"}
                row |= {"seconds": its.median, "p99": its.p99, "updates": world.size / its.median}
                row |= {"sent": "-", "ratio": its.median / engine.median}
                if name in stores:
                    row |= _traffic(world, stores[name], factors)
                    row["latency"] = times[f"{name}, empty"].median
                printer.row(row)
                results.append(row)
    if json_file is not None and world.rank == 0:
        write_json(json_file, asdict(config), environment, results)
    return results


def _clock(store: sfb.Store, factors: sfb.Factors | None) -> None:
    """Do one step of training, but for the training."""
    if factors is not None:
        store.push("w", factors)
    store.clock()
    _ = store["w"]


def _traffic(world: MPI.Intracomm, store: sfb.Store, factors: sfb.Factors) -> dict[str, Any]:
    """Return what one clock sends, after doing one."""
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
