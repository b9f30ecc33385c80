"""Model averaging over a graph: each rank trains a replica of its own and mixes it with those of its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from os import sched_yield
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.factors import Factors
from sfb.kernels import header
from sfb.optim import Optimizer
from sfb.runtime import seals
from sfb.runtime.board import Watch
from sfb.runtime.errors import RankFailedError
from sfb.runtime.inquiry import failures_among
from sfb.runtime.limits import MAX_COUNT, STALL, timeout_or_default
from sfb.runtime.seals import DamagedMessageError, padded
from sfb.runtime.ulfm import private
from sfb.store.base import StoreBase, StoreError, farewell, reason
from sfb.trace.spans import span

__all__ = ["AveragingStore"]

_MODEL, _FAREWELL = 1, 2  # tags
_LONGEST = 1 << 12  # bytes of a farewell, at most
_HEADER = seals.BYTES + 8  # bytes of the seal and of the weight, before the tables of a message
_abandoned: list[tuple[object, ...]] = []  # keeps alive what MPI may still read or write


class AveragingStore(StoreBase):
    """Parameters of which every rank trains a replica of its own and averages it with those of its neighbours.

    An update changes this rank's replica only. At each clock the rank sends its replica to its out-neighbours; at each
    read it takes the weighted mean of its own and of those it has received (Li et al., "MALT: Distributed
    Data-Parallelism for Existing ML Applications", EuroSys 2015, section 3). The weights are those of push-sum (Kempe,
    Dobra and Gehrke, "Gossip-Based Computation of Aggregate Information", FOCS 2003): a rank gives each out-neighbour
    an equal share of its own weight, so that no rank counts for more in graphs of unequal degrees. Nobody waits: a rank
    sends nothing to a neighbour that has not received the replica before, and gives it no share, so a rank ahead of the
    others keeps its weight. The replicas are near each other, not equal; `consensus_error` says how near.

    Args:
        comm: The ranks; any intracommunicator.
        tables: Initial values by name, as for `sfb.Store`.
        rule: An optimizer without a parameter, or one for each name; its state is this rank's own.
        topology: As for `sfb.Store`.
        stall: As for `sfb.Store`.
        timeout: Seconds after which a wait for other ranks raises `RankFailedError`, as in `Comm`. Every call raises it
            once a rank is known to have failed.
        check_finite: As for `sfb.Store`.

    Raises:
        TypeError, ValueError: An argument is wrong on this or another rank; on every rank.
        MismatchError: Ranks disagree about tables, rule or topology; on every rank.

    Attributes:
        sent_bytes: Bytes of the replicas that this rank has sent so far.
        last_consensus_error: The last result of `consensus_error`; after `close`, the error before it made the
            replicas equal.

    >>> import numpy as np
    >>> import sfb
    >>> from mpi4py import MPI
    >>> with sfb.AveragingStore(MPI.COMM_SELF, {"w": np.zeros(3)}, sfb.optim.SGD(lr=0.5)) as store:
    ...     store.push("w", np.ones(3))
    ...     store.clock()
    >>> store["w"], store.last_consensus_error
    (array([-0.5, -0.5, -0.5]), 0.0)
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        tables: Mapping[str, np.ndarray],
        rule: Optimizer | Mapping[str, Optimizer],
        *,
        topology: Any = "halton",
        stall: float = STALL,
        timeout: float | None = None,
        check_finite: bool = False,
    ) -> None:
        def prepare() -> str:
            if not stall > 0:
                raise ValueError(f"stall must be a number of seconds > 0, got {stall!r}")
            timeout_or_default(timeout)
            if self._model_bytes > MAX_COUNT:
                raise ValueError(f"tables of {self._model_bytes} bytes are too large to be sent at once")
            return "model averaging"

        super().__init__(comm, tables, rule, topology, prepare)
        self._targets = self.topology.out_neighbours(self._rank)
        self._check_finite = check_finite
        self._stall = stall
        self._failures = failures_among(private(MPI.Intracomm(self._world.Dup())), timeout_or_default(timeout))
        self._weight = 1.0
        self._flights: dict[int, tuple[MPI.Request, np.ndarray]] = {}
        self._received: dict[int, tuple[float, np.ndarray]] = {}
        self._status = MPI.Status()
        # The number of messages to each rank, and from each.
        self._numbered, self._due = [0] * self._world.size, [0] * self._world.size
        self.sent_bytes = 0
        self.last_consensus_error = 0.0

    @property
    def _model_bytes(self) -> int:
        return _HEADER + sum(padded(table.array.nbytes) for table in self._tables)

    @property
    def weight(self) -> float:
        """The weight of this rank's replica in a mean; 1 at first.

        The weights of all ranks, with those in messages, add up to the number of ranks.
        """
        return self._weight

    def _push(self, number: int, update: Factors | np.ndarray) -> None:
        """Apply an update to this rank's replica."""
        table = self._tables[number]
        optimizer = table.optimizer
        if isinstance(update, Factors):
            optimizer.update(update.u, update.v, 0, len(table.matrix), threads=self._threads)
            optimizer.end()
        else:
            optimizer.step(np.ascontiguousarray(update).reshape(table.matrix.shape))
        self._move()

    def _end_clock(self) -> None:
        """Send this rank's replica to the out-neighbours that have received the one before."""
        self._clock += 1
        self._move()
        targets = [rank for rank in self._targets if rank not in self._flights]
        self._weight /= len(targets) + 1
        for rank in targets:
            self._send(rank, self._weight)

    def consensus_error(self) -> float:
        """Return the largest ‖replica − mean‖/‖mean‖ over ranks, of all tables together; collective.

        Raises:
            RuntimeError: The store is closed.
            StoreError: This or another rank has left the store by an exception.
            RankFailedError: A rank is gone or does not come.
        """
        self._check_open()
        self.last_consensus_error, _ = self._consensus("consensus_error")
        return self.last_consensus_error

    def _close(self) -> None:
        # The messages that arrive now are not mixed: the replicas of their senders hold what they hold, and are newer.
        self._settle()
        self.last_consensus_error, means = self._consensus("close")
        for table, mean in zip(self._tables, means, strict=True):
            table.matrix[:] = mean
        self._open = False
        self._failures.free()
        self._world.Free()

    def _settle(self) -> None:
        """Wait until all ranks have received all replicas sent; collective."""
        # A synchronous send completes when it is received, so none is in flight after the barrier.
        self._wait(lambda: not self._flights, lambda: sorted(self._flights), "close")
        self._complete(self._world.Ibarrier(), "close")

    def _consensus(self, what: str) -> tuple[float, list[np.ndarray]]:
        means = []
        distance = length = 0.0
        for table in self._tables:
            own, mean = table.matrix.astype(np.float64), np.empty(table.matrix.shape)
            self._complete(self._world.Iallreduce(own, mean), what, own, mean)
            mean /= self._world.size
            distance += float(np.sum((table.matrix - mean) ** 2))
            length += float(np.sum(mean**2))
            means.append(mean)
        error = np.array([np.sqrt(distance / length) if length else np.sqrt(distance)])
        errors = np.empty(self._world.size)
        self._complete(self._world.Iallgather(error, errors), what, error, errors)
        return float(np.max(errors)), means  # NaN wins

    def _refresh(self, name: str) -> None:
        self._move()
        self._mix()

    def _mix(self) -> None:
        """Take the weighted mean of this rank's replica and of those received."""
        if not self._received:
            return
        total = self._weight + sum(weight for weight, _ in self._received.values())
        at = _HEADER
        for table in self._tables:
            values = table.array.nbytes
            table.matrix *= table.matrix.dtype.type(self._weight / total)
            for _, (weight, message) in sorted(self._received.items()):
                other = message[at : at + values].view(table.matrix.dtype).reshape(table.matrix.shape)
                table.matrix += other * table.matrix.dtype.type(weight / total)
            at += padded(values)
        self._weight = total
        self._received.clear()

    def _move(self) -> bool:
        """Receive replicas, and note which of this rank's were received; return whether anything happened.

        Raises:
            StoreError: Another rank has left the store by an exception.
            RankFailedError: A rank is gone.
        """
        try:
            moved = self._look()
        except MPI.Exception:
            self._failures.find()
            raise
        if self._failure is not None:
            raise StoreError(self._failure)
        self._failures.check()
        return moved

    def _look(self) -> bool:
        """Do what `_move` does, without a look at failures."""
        moved = False
        while (message := self._world.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, self._status)) is not None:
            moved = True
            source, tag = self._status.source, self._status.tag
            try:
                memory = self._receive(message, source, tag)
            except DamagedMessageError as error:
                self._fail(error)
                break
            if tag == _FAREWELL:
                self._failure = self._failure or farewell(source, memory[seals.BYTES :])
                continue
            # The newest replica of a rank replaces the one before, with the weight of both.
            weight = float(memory[seals.BYTES : _HEADER].view(np.float64)[0])
            before = self._received[source][0] if source in self._received else 0.0
            self._received[source] = before + weight, memory
        for rank, (request, _) in list(self._flights.items()):
            if request.Test():
                del self._flights[rank]
                moved = True
        return moved

    def _receive(self, message: MPI.Message, source: int, tag: int) -> np.ndarray:
        """Return a message that has come, as bytes; raise DamagedMessageError if it is damaged."""
        nbytes, due = self._status.Get_count(MPI.BYTE), self._model_bytes
        if nbytes != due if tag == _MODEL else not seals.BYTES <= nbytes <= _LONGEST:
            raise DamagedMessageError(f"the message of rank {source} has {nbytes} bytes where {due} were due")
        memory = np.empty(nbytes, np.uint8)
        message.Recv([memory, MPI.BYTE])
        words, contents = memory[: seals.BYTES].view(np.int64), memory[seals.BYTES :]
        kind, number = header.REPLICA if tag == _MODEL else header.FAREWELL, self._due[source]
        self._due[source] += 1
        wrong = seals.fault(words, kind, number, contents, checked=self._checks(source))
        if wrong:
            raise DamagedMessageError(f"the message of rank {source} {wrong}")
        return memory

    def _seal(self, memory: np.ndarray, kind: int, rank: int) -> None:
        """Write the seal of a message to a rank."""
        words, contents = memory[: seals.BYTES].view(np.int64), memory[seals.BYTES :]
        seals.seal(words, kind, self._numbered[rank], contents, checked=self._checks(rank))
        self._numbered[rank] += 1

    def _send(self, rank: int, weight: float) -> None:
        memory = np.empty(self._model_bytes, np.uint8)
        memory[seals.BYTES : _HEADER].view(np.float64)[0] = weight
        at = _HEADER
        for table in self._tables:
            values = table.array.reshape(-1).view(np.uint8)
            memory[at : at + values.nbytes] = values
            at += padded(values.nbytes)
        self._seal(memory, header.REPLICA, rank)
        self._flights[rank] = self._world.Issend([memory, MPI.BYTE], rank, _MODEL), memory
        self.sent_bytes += memory.nbytes

    def _complete(self, request: MPI.Request, what: str, *buffers: np.ndarray) -> None:
        """Wait for a nonblocking collective with these buffers."""
        try:
            self._wait(request.Test, list, what)
        except BaseException:
            _abandoned.append((request, *buffers))
            raise

    def _wait(self, condition: Callable[[], bool], missing: Callable[[], list[int]], what: str) -> None:
        """Receive replicas until ``condition`` holds.

        Args:
            condition: Returns whether the wait is over.
            missing: Returns the ranks that this one waits for, as far as it knows them.
            what: The call that waits.
        """
        if condition():
            return
        watch = Watch(self._stall, self._rank, failures=self._failures)
        with span(what, "wait", label=self._label, number=self._clock) as recorded:
            while not condition():
                if not self._move():
                    recorded.waits_for(missing)
                    sched_yield()
                    watch.look(missing, f"{what} at clock {self._clock}")

    def _abandon(self, error: BaseException) -> None:
        self._open = False
        if isinstance(error, RankFailedError):  # which all ranks raise by themselves
            self._failure = str(error)
            return
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Note that this rank fails, unless another has before, and tell the others."""
        if self._failure is not None:
            return
        text = reason(error)
        self._failure = farewell(self._rank, text)
        # An attribute keeps the buffers alive until MPI has sent them.
        self._last_words = []
        for rank in range(self._world.size):
            if rank != self._rank:
                memory = np.empty(seals.BYTES + text.nbytes, np.uint8)
                memory[seals.BYTES :] = text
                self._seal(memory, header.FAREWELL, rank)
                with suppress(MPI.Exception):  # a rank has died, and the others hear of it by MPI
                    self._last_words.append((self._world.Isend([memory, MPI.BYTE], rank, _FAREWELL), memory))
