"""Model averaging over a graph: ranks train on their own, and mix their replicas with those of their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from os import sched_yield
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.factors import Factors
from sfb.optim import Optimizer
from sfb.store.base import StoreBase, StoreError

__all__ = ["AveragingStore"]

_MODEL, _FAREWELL = 1, 2  # tags
_LIMIT = 2**31 - 1  # bytes of a message


class AveragingStore(StoreBase):
    """Parameters of which every rank trains a replica of its own, averaged with those of its neighbours.

    An update changes this rank's replica only. At each clock the rank sends the replica to its out-neighbours, and
    at each read takes the weighted mean of its own and of what has come (Li et al., "MALT", EuroSys 2015, section 3).
    Weights follow push-sum (Kempe, Dobra and Gehrke, FOCS 2003): a rank gives each out-neighbour an equal share of
    its own, so that no rank counts for more in graphs of unequal degrees. Nobody waits: a neighbour that has not taken
    the replica before gets none and no share, so that a rank ahead of the others keeps its weight. So the replicas are
    near each other, not equal; how near, `consensus_error` tells.

    Args:
        comm: The ranks; any intracommunicator.
        tables: Initial values by name, as for `sfb.Store`.
        rule: An optimizer without a parameter, or one for each name; its state is this rank's own.
        topology: As for `sfb.Store`.

    Raises:
        TypeError, ValueError, MismatchError: As `sfb.Store` does.

    Attributes:
        sent_bytes: By this rank so far.
        last_consensus_error: What `consensus_error` found last, or `close`, before it made the replicas equal.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        tables: Mapping[str, np.ndarray],
        rule: Optimizer | Mapping[str, Optimizer],
        *,
        topology: Any = "halton",
    ) -> None:
        def prepare() -> str:
            if self._model_bytes > _LIMIT:
                raise ValueError(f"tables of {self._model_bytes} bytes are too large to be sent at once")
            return "model averaging"

        super().__init__(comm, tables, rule, topology, prepare)
        self._targets = self.topology.out_neighbours(self._rank)
        self._weight = 1.0
        self._flights: dict[int, tuple[MPI.Request, np.ndarray]] = {}
        self._came: dict[int, tuple[float, np.ndarray]] = {}
        self._status = MPI.Status()
        self.sent_bytes = 0
        self.last_consensus_error = 0.0

    @property
    def _model_bytes(self) -> int:
        return 8 + sum(table.array.nbytes + -table.array.nbytes % 8 for table in self._tables)

    @property
    def weight(self) -> float:
        """What this rank's replica counts for; 1 at the beginning, and the size of the communicator over all ranks."""
        return self._weight

    def push(self, name: str, update: Factors | np.ndarray) -> None:
        """Apply an update to this rank's replica.

        Args:
            name: Of the table.
            update: `Factors` of the table's shape, S may be 0; or an array of that shape.

        Raises:
            KeyError, TypeError, ValueError: The update does not fit.
            RuntimeError: The store is closed.
            StoreError: Another rank has failed.
        """
        table = self._tables[self._number(name)]
        self._check_open()
        self._check_update(table, update)
        optimizer = table.optimizer
        if isinstance(update, Factors):
            optimizer.update(update.u, update.v, 0, len(table.matrix), threads=self._threads)
            optimizer.end()
        else:
            optimizer.step(np.ascontiguousarray(update).reshape(table.matrix.shape))
        self._move()

    def clock(self) -> None:
        """Send this rank's replica to those of its out-neighbours that have taken the one before."""
        self._check_open()
        self._clock += 1
        self._move()
        targets = [rank for rank in self._targets if rank not in self._flights]
        self._weight /= len(targets) + 1
        for rank in targets:
            self._send(rank, self._weight)

    def consensus_error(self) -> float:
        """Return how far the replicas are from their mean, relative to it; collective.

        The largest over ranks of ‖replica − mean‖/‖mean‖, all tables together.

        Raises:
            RuntimeError: The store is closed.
            StoreError: Another rank has failed.
        """
        self._check_open()
        self.last_consensus_error, _ = self._consensus()
        return self.last_consensus_error

    def close(self) -> None:
        """End the use of the store; collective. Afterwards every replica holds the mean of all, the same bits."""
        if not self._open:
            return
        self._check_open()
        # What is on its way is taken (a message counts as sent when it is, so after the barrier there is none) but not
        # mixed: its sender's replica holds all that it held, and is newer.
        while self._flights:
            self._move_or_yield()
        barrier = self._world.Ibarrier()
        while not barrier.Test():
            self._move_or_yield()
        self.last_consensus_error, means = self._consensus()
        for table, mean in zip(self._tables, means, strict=True):
            table.matrix[:] = mean
        self._open = False
        self._world.Free()

    def _consensus(self) -> tuple[float, list[np.ndarray]]:
        means = []
        distance = length = 0.0
        for table in self._tables:
            mean = np.empty(table.matrix.shape)
            self._world.Allreduce(table.matrix.astype(np.float64), mean)
            mean /= self._world.size
            distance += float(np.sum((table.matrix - mean) ** 2))
            length += float(np.sum(mean**2))
            means.append(mean)
        error = float(np.sqrt(distance / length)) if length else float(np.sqrt(distance))
        return self._world.allreduce(error, MPI.MAX), means

    def _refresh(self, name: str) -> None:
        self._move()
        self._mix()

    def _mix(self) -> None:
        """Take the weighted mean of this rank's replica and of those that have come."""
        if not self._came:
            return
        total = self._weight + sum(weight for weight, _ in self._came.values())
        at = 8
        for table in self._tables:
            values = table.array.nbytes
            table.matrix *= table.matrix.dtype.type(self._weight / total)
            for _, (weight, message) in sorted(self._came.items()):
                theirs = message[at : at + values].view(table.matrix.dtype).reshape(table.matrix.shape)
                table.matrix += theirs * table.matrix.dtype.type(weight / total)
            at += values + -values % 8
        self._weight = total
        self._came.clear()

    def _move(self) -> bool:
        """Receive what has come and see what has been taken; return whether anything happened."""
        moved = False
        while (message := self._world.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, self._status)) is not None:
            moved = True
            memory = np.empty(self._status.Get_count(MPI.BYTE), np.uint8)
            source, tag = self._status.source, self._status.tag
            message.Recv([memory, MPI.BYTE])
            if tag == _FAREWELL:
                self._failure = memory.tobytes().decode(errors="replace")
                continue
            weight = float(memory[:8].view(np.float64)[0])
            before = self._came[source][0] if source in self._came else 0.0
            self._came[source] = before + weight, memory
        for rank, (request, _) in list(self._flights.items()):
            if request.Test():
                del self._flights[rank]
                moved = True
        if self._failure is not None:
            raise StoreError(self._failure)
        return moved

    def _send(self, rank: int, weight: float) -> None:
        memory = np.empty(self._model_bytes, np.uint8)
        memory[:8].view(np.float64)[0] = weight
        at = 8
        for table in self._tables:
            values = table.array.reshape(-1).view(np.uint8)
            memory[at : at + values.nbytes] = values
            at += values.nbytes + -values.nbytes % 8
        self._flights[rank] = self._world.Issend([memory, MPI.BYTE], rank, _MODEL), memory
        self.sent_bytes += memory.nbytes

    def _move_or_yield(self) -> None:
        if not self._move():
            sched_yield()

    def _abandon(self, error: BaseException) -> None:
        self._open = False
        if self._failure is None:
            self._failure = f"rank {self._rank} has left the store: {type(error).__name__}: {error}"[:1000]
            text = np.frombuffer(self._failure.encode(), np.uint8)
            others = [rank for rank in range(self._world.size) if rank != self._rank]
            self._last_words = [(self._world.Isend([text, MPI.BYTE], rank, _FAREWELL), text) for rank in others]
