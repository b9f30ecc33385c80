"""What the ranks of a training run tell rank 0 of themselves while it goes on."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.training.status import Row, Status, save
from sfb.training.sync import Totals

__all__ = ["Live"]

_log = logging.getLogger("sfb")

# Seconds between two messages of a rank, and between two files.
_INTERVAL, _WRITE = 1.0, 2.0
# The file takes at most this part of the time of rank 0.
_SHARE = 1e-3
_TAG = 1


class Live(AbstractContextManager["Live"]):
    """The status of all ranks, which rank 0 gathers and writes; making one is collective, and so is its regular end.

    Args:
        world: The ranks that train.
        title: What they train.
        folder: Folder for the file that `sfb watch` reads; None for none.
        clock: Returns seconds.

    Attributes:
        status: The status, on rank 0.
        stopped: What has ended the run before its end; None for nothing.
    """

    def __init__(
        self, world: MPI.Intracomm, title: str, folder: Path | None, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._rank = world.rank
        self._comm = MPI.Intracomm(world.Dup()) if world.size > 1 else None
        self._hosts = world.gather(socket.gethostname())
        self._folder = folder if world.rank == 0 else None
        self._clock = clock
        self._due = self._next_file = 0.0
        self._last = 0.0, 0, 0.0, 0
        self._steps = 0
        self._begun = False
        self._told: tuple[int, int, float, int, Totals, int] = 0, 0, 0.0, 0, Totals(), 0
        self._request: Any = None
        self._sent = 0
        self._received: dict[int, int] = {}
        self._rows: dict[int, Row] = {}
        self.stopped: str | None = None
        self.status = Status(title)

    def begin(self) -> None:
        """Begin to measure: the first step follows."""
        self._begun = True
        self._last = self._clock(), 0, 0.0, 0
        if self._folder is not None:
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)

    def tick(self, first: int, total: int, loss: float, wire_bytes: int, totals: Totals, staleness: int) -> bool:
        """Note a step of this rank; return whether rank 0 has news.

        Args:
            first: Steps of the run before this program took its first.
            total: Steps of the run.
            loss: Mean loss of the batch.
            wire_bytes: Bytes received so far.
            totals: What exchanges have cost so far.
            staleness: The most clocks that a read of the step was behind.
        """
        self._steps += 1
        self._told = first, total, loss, wire_bytes, totals, staleness
        now = self._clock()
        if now < self._due:
            return False
        self._due = now + _INTERVAL
        return self._report(now)

    def _report(self, now: float, *, last: bool = False) -> bool:
        """Tell rank 0, or write what all have told; return whether rank 0 has news.

        Args:
            now: The time.
            last: Whether there is to be no other report.
        """
        first, total, loss, wire_bytes, totals, staleness = self._told
        then, steps, exchange, nbytes = self._last
        self._last = now, self._steps, totals.exchange_seconds, wire_bytes
        if self._steps == steps:
            return False
        seconds = max(now - then, 1e-9)
        values = np.array(
            [
                first + self._steps,
                seconds / (self._steps - steps),
                min(1.0, max(0.0, totals.exchange_seconds - exchange) / seconds),
                max(0, wire_bytes - nbytes) / seconds,
                staleness,
                _memory(),
            ]
        )
        if self._rank > 0:
            self._send(values)
            return False
        self._note(0, values)
        self._receive()
        self.status.total = total
        self.status.loss = float(loss) if np.isfinite(loss) else None
        self.status.rows = [self._rows[rank] for rank in sorted(self._rows)]
        if now >= self._next_file and not last:
            self._write()
            self._next_file = now + max(_WRITE, (self._clock() - now) / _SHARE)
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With an error on the way the other ranks may never come.
        if error is None:
            self._report(self._clock(), last=True)
            self._finish()
        if self._rank == 0:
            ended = "complete" if self.stopped is None else f"ended by {self.stopped}"
            self.status.state = ended if error is None else f"failed: {str(error) or repr(error)}"
            self._write()

    def _finish(self) -> None:
        """Receive what is on its way, and free the communicator; collective."""
        if self._comm is None:
            return
        for rank, count in enumerate(self._comm.gather(self._sent) or ()):
            while self._received.get(rank, 0) < count:
                self._take(rank)
        if self._request is not None:
            self._request.Wait()
        self._comm.Free()
        self.status.rows = [self._rows[rank] for rank in sorted(self._rows)]

    def _send(self, values: np.ndarray) -> None:
        """Send rank 0 a message, unless the last is still on its way."""
        assert self._comm is not None
        if self._request is None or self._request.Test():
            self._request = self._comm.Isend(values, 0, _TAG)
            self._sent += 1

    def _receive(self) -> None:
        status = MPI.Status()
        while self._comm is not None and self._comm.Iprobe(MPI.ANY_SOURCE, _TAG, status):
            self._take(status.source)

    def _take(self, rank: int) -> None:
        assert self._comm is not None
        values = np.empty(6)
        self._comm.Recv(values, rank, _TAG)
        self._received[rank] = self._received.get(rank, 0) + 1
        self._note(rank, values)

    def _note(self, rank: int, values: np.ndarray) -> None:
        clock, seconds, waiting, received, staleness, memory = values.tolist()
        host = self._hosts[rank] if self._hosts else ""
        self._rows[rank] = Row(rank, host, int(clock), seconds, waiting, received, int(staleness), int(memory))

    def _write(self) -> None:
        """Write the file; a run goes on without."""
        if self._folder is None or not self._begun:
            return
        try:
            save(self._folder, self.status)
        except OSError as error:
            _log.warning("sfb watch will show nothing: cannot write to %s: %s", self._folder, error.strerror or error)
            self._folder = None


def _memory() -> int:
    """Return the bytes of memory that this process uses."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
