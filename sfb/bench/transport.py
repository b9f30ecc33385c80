"""How a message of the store could travel inside a node: two-sided MPI, or one-sided into a buffer of the receiver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.bench.engine import Column, Printer, measure, microseconds, write_json
from sfb.environment import describe, header
from sfb.kernels import header as layout
from sfb.kernels import sync
from sfb.runtime.threads import limit_process

__all__ = ["COLUMNS", "Config", "run"]

_ROUNDS = 20  # round trips of a sample
_SPINS, _PATIENCE = 5000, 4000


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Bytes of a message.
        iterations: Timed samples of each candidate.
        warmups: Samples before.
        seconds: Most time for one size.
    """

    sizes: Sequence[int] = (64, 1024, 16384, 262144, 4194304)
    iterations: int = 50
    warmups: int = 2
    seconds: float = 10.0


COLUMNS = [
    Column("bytes", "size(B)", width=10),
    Column("two-sided", "two-sided(us)", microseconds, 15),
    Column("stores", "stores(us)", microseconds, 12),
    Column("put", "put(us)", microseconds, 12),
]


def run(
    world: MPI.Intracomm, config: Config, *, json_file: Path | None = None, as_csv: bool = False
) -> list[dict[str, Any]]:
    """Measure, print on rank 0, and return the rows; collective, over 2 ranks of one node.

    Raises:
        ValueError: There are other than 2 ranks, or they do not share memory.
    """
    node = MPI.Intracomm(world.Split_type(MPI.COMM_TYPE_SHARED))
    shared = node.size
    node.Free()
    if not world.size == shared == 2:
        raise ValueError("the transports are measured between 2 ranks of one node")
    limit_process(world)
    environment = describe(world)
    printer = Printer(world, COLUMNS, as_csv=as_csv)
    printer.comment(
        [
            "sfb bench transport: a message from one rank of a node to another",
            *header(environment),
            "time: of one way, the receiver's copy included, median of the slowest rank",
            "two-sided: Isend, Improbe, Irecv, as the store does; stores: into a buffer that both map, and a number",
            "that announces it; put: MPI Put of both into a window, flushed in turn",
        ]
    )
    printer.heading()
    results = []
    for nbytes in config.sizes:
        pair = _Pair(world, nbytes)
        candidates = {"two-sided": pair.two_sided, "stores": pair.stores, "put": pair.put}
        times = measure(
            world,
            {name: _rounds(world.rank, *ways) for name, ways in candidates.items()},
            iterations=config.iterations,
            warmups=config.warmups,
            seconds=config.seconds,
        )
        pair.free()
        row: dict[str, Any] = {"bytes": nbytes}
        row |= {name: taken.median / (2 * _ROUNDS) for name, taken in times.items()}
        printer.row(row)
        results.append(row)
    if json_file is not None and world.rank == 0:
        write_json(json_file, asdict(config), environment, results)
    return results


def _rounds(rank: int, send: Callable[[], None], receive: Callable[[], None]) -> Callable[[], None]:
    """Return what lets two ranks send to each other in turn."""

    def candidate() -> None:
        for _ in range(_ROUNDS):
            for step in (send, receive) if rank == 0 else (receive, send):
                step()

    return candidate


class _Pair:
    """Two ranks, with a buffer each into which the other writes."""

    def __init__(self, world: MPI.Intracomm, nbytes: int) -> None:
        self._world = world
        self._other = 1 - world.rank
        self._message = np.full(nbytes, world.rank, np.uint8)
        self._number = 0
        self._heard = 0
        self._status = MPI.Status()
        self._flag = layout.slot(1, 0) * 8
        self._window = MPI.Win.Allocate_shared(self._flag + nbytes, 1, comm=world)
        self._window.Lock_all()
        inbox, outbox = (
            np.frombuffer(memoryview(self._window.Shared_query(rank)[0]), np.uint8)
            for rank in (world.rank, self._other)
        )
        inbox[: self._flag] = 0
        self._inbox, self._outbox = inbox[self._flag :], outbox[self._flag :]
        self._announced, self._announce = (box[: self._flag].view(np.int64) for box in (inbox, outbox))
        world.Barrier()
        self.two_sided = self._isend, self._improbe
        self.stores = self._store, self._await
        self.put = self._put, self._await

    def free(self) -> None:
        """Give the window back; collective."""
        del self._inbox, self._outbox, self._announced, self._announce
        self._window.Unlock_all()
        self._window.Free()

    def _isend(self) -> None:
        request = self._world.Isend([self._message, MPI.BYTE], self._other)
        while not request.Test():
            pass

    def _improbe(self) -> None:
        while (message := self._world.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, self._status)) is None:
            pass
        memory = np.empty(self._status.Get_count(MPI.BYTE), np.uint8)
        request = message.Irecv([memory, MPI.BYTE])
        while not request.Test():
            pass

    def _store(self) -> None:
        self._outbox[:] = self._message
        self._number += 1
        sync.reach(self._announce, 0, self._number, sync.ARRIVED)

    def _put(self) -> None:
        window, other = self._window, self._other
        window.Put([self._message, MPI.BYTE], other, self._flag)
        window.Flush(other)
        self._number += 1
        slot = layout.slot(0, self._number) + layout.STATE
        state = np.array([(self._number << 20) + sync.ARRIVED])
        window.Put([state, MPI.INT64_T], other, slot * 8)
        window.Flush(other)

    def _await(self) -> None:
        self._heard += 1
        while not sync.reached(self._announced, 0, 1, self._heard, sync.ARRIVED, _SPINS, _PATIENCE):
            pass
        self._inbox.copy()
