"""What takes the exchanges of a queue forward: a thread, or the calls of this library."""

from __future__ import annotations

import atexit
import logging
import threading
from functools import cache
from time import sleep
from typing import Any, Protocol

from mpi4py import MPI

from sfb.runtime.queue import Queue, QueuedExchange
from sfb.runtime.requests import PolledRequest, Request

__all__ = ["Progress", "Ticker"]

_log = logging.getLogger("sfb")

# Seconds to wait, when the program ends, for a thread that may be inside MPI.
_PATIENCE = 5.0


class Advancing(Protocol):
    """Work that a thread can advance."""

    @property
    def busy(self) -> bool:
        """Whether there is work."""

    def advance(self) -> Any:
        """Do what can be done without waiting."""


class Ticker:
    """A thread that advances a queue from time to time until it is empty.

    Args:
        queue: The queue.
        interval: Seconds between two advances.
    """

    def __init__(self, queue: Advancing, interval: float) -> None:
        self._queue = queue
        self._interval = interval
        self._wanted = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="sfb progress", daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # before MPI is finalized

    def wake(self) -> None:
        """Advance the queue from now on until it is empty."""
        self._wanted.set()

    def stop(self) -> None:
        """End the thread."""
        self._ended = True
        self._wanted.set()
        self._thread.join(_PATIENCE)
        atexit.unregister(self.stop)

    def _run(self) -> None:
        while self._wanted.wait() and not self._ended:
            self._wanted.clear()
            while self._queue.busy and not self._ended:
                self._queue.advance()
                sleep(self._interval)


class Progress:
    """What takes the exchanges in a queue forward: a thread, or the calls of this library.

    Args:
        interval: Seconds between two looks of the thread.
        thread: Whether to have a thread, where MPI can be called from it.

    Attributes:
        queue: The exchanges.
    """

    def __init__(self, interval: float, *, thread: bool) -> None:
        self.queue = Queue()
        self._interval = interval
        self._thread = thread
        self._ticker: Ticker | None = None

    @property
    def threaded(self) -> bool:
        """Whether a thread takes exchanges forward."""
        return self._thread and MPI.Query_thread() >= MPI.THREAD_MULTIPLE

    def wake(self) -> None:
        """Let the thread take exchanges forward until none is under way."""
        if self._ticker is None:
            self._ticker = Ticker(self.queue, self._interval)
        self._ticker.wake()

    def under_way(self) -> bool:
        """Return whether exchanges are under way beside a call of plain arrays, which waits for other ranks.

        They may wait for this rank's part of an exchange: the thread takes it forward, or this call does so first.
        """
        queue = self.queue
        if not queue.busy:
            return False
        if not self.threaded:
            queue.drain()
            return False
        queue.make_room()
        self.wake()
        return queue.busy

    def request(self, queued: QueuedExchange) -> Request | PolledRequest:
        """Return a request for an exchange in the queue."""
        if not self.threaded:
            if self._thread:
                _say_level()
            return PolledRequest(self.queue, queued)
        self.wake()
        return Request(self.queue, queued)

    def stop(self) -> None:
        """Wait for the end of all exchanges, and end the thread."""
        self.queue.drain()
        self._stop_thread()

    def abandon(self, error: Exception) -> list[QueuedExchange]:
        """End the thread, and all exchanges with an exception; return these."""
        self._stop_thread()
        return self.queue.abandon(error)

    def _stop_thread(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None


@cache  # once
def _say_level() -> None:
    """Warn that the program's exchanges advance only inside calls of this library."""
    if MPI.COMM_WORLD.rank == 0:
        names = {getattr(MPI, f"THREAD_{name}"): name for name in ("SINGLE", "FUNNELED", "SERIALIZED")}
        _log.warning(
            "MPI was initialized with MPI_THREAD_%s, so no thread takes Iallreduce forward: it advances only inside "
            "calls of sfb, and mpi4py's Waitall does not take its requests, but sfb.Request.Waitall does; "
            'mpi4py.rc.thread_level = "multiple" allows the thread, and progress="poll" says that none is wanted',
            names[MPI.Query_thread()],
        )
