"""The operations of a process group, done in order by its thread or by who waits for them."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic, sleep
from typing import Protocol

import torch.distributed as dist
from mpi4py import MPI

from sfb.trace.now import NOW
from sfb.trace.recorder import BLOCKING
from sfb.trace.spans import span

__all__ = ["Lane", "Operation", "Polled", "abandon", "timed_out", "wait_until"]

# Seconds for which a rank that does nothing else looks without sleeping; its sleeps then, and their growth.
_SPIN, _SLEEPS, _GROWTH = 1e-3, (2e-5, 5e-4), 1.5
# Seconds between two looks of the thread after messages.
_TICK = 5e-4
# Seconds that the end of a group waits for its thread.
_FAREWELL = 5.0
# Seconds for which `submit` waits for other ranks, at most, and at least: half as long after each wait in vain.
_PATIENCE, _IMPATIENCE = 0.2, 1e-4


def wait_until(poll: Callable[[], bool], seconds: float, idle: Callable[[], bool] | None = None) -> bool:
    """Wait until ``poll`` returns True, and return True; or False after ``seconds``.

    Args:
        poll: Returns whether what is waited for has come.
        seconds: How long to wait.
        idle: Returns whether the caller's core has nothing else to do; if not, look more rarely. By default it has
            nothing else.
    """
    if poll():
        return True
    began = monotonic()
    pause, longest = _SLEEPS
    while not poll():
        waited = monotonic() - began
        if waited > seconds:
            return False
        if waited < _SPIN and (idle is None or idle()):
            os.sched_yield()
        else:
            sleep(pause)
            pause = min(pause * _GROWTH, longest)
    return True


def timed_out(what: str, whose: str, seconds: float) -> dist.DistBackendError:
    """Return the error of an operation for which other ranks have not come."""
    return dist.DistBackendError(
        f"rank {MPI.COMM_WORLD.rank}: Timed out after {seconds:g} s of waiting for other ranks in {what} of {whose}; "
        "look for a rank that failed, calls something else, or needs longer (timeout=)"
    )


def abandon(*objects: object) -> None:
    """Keep a request that is late, and what holds its buffers, as long as the process: MPI may still write there.

    mpi4py's requests do not hold the buffers of collectives.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(objects))


class Operation(Protocol):
    """A collective of a process group."""

    seconds: float
    done: bool
    begun: Iterator[MPI.Request] | None
    request: MPI.Request | None
    since: float

    @property
    def what(self) -> str:
        """The operation, for messages."""

    @property
    def steps(self) -> Callable[[], Iterator[MPI.Request]]:
        """Does the operation; yields what it waits for."""

    def finish(self, error: BaseException | None) -> None:
        """Hand the result, or an error, to who waits for a future; called once, after `done` is set."""


class Polled(Protocol):
    """A message under way."""

    def poll(self) -> bool:
        """Return whether it has ended."""


class Lane:
    """A queue of operations, each begun when the one before has ended, as all ranks of the group do.

    A thread does what `submit` queues, so that it goes on beside the caller's work. Who waits for an operation does it
    if no other thread does: a blocking call costs no change of threads. Without MPI_THREAD_MULTIPLE there is no
    thread, and `submit` does the operation before it returns.

    Where ranks share cores a thread beside the caller's work gains nothing, and exchanges suffer: each of their steps
    waits until all ranks have a core. So `submit` waits a while for the other ranks, without using a core, and does
    the operation if they come; the thread, if they do not.

    Args:
        whose: The process group, for messages.
        crowded: Whether ranks share cores.
    """

    def __init__(self, whose: str, crowded: bool = False) -> None:
        self._whose = whose
        self._crowded = crowded
        self._patience = _PATIENCE
        self._threaded = MPI.Query_thread() >= MPI.THREAD_MULTIPLE
        self._queue: deque[Operation] = deque()
        self._messages: list[Polled] = []
        self._running = False
        self._waiting = 0
        self._begun = 0
        self._ended = False
        self._broken = ""
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    @property
    def broken(self) -> bool:
        """Whether no operation can be done any more."""
        return bool(self._broken) or self._ended

    @property
    def failed(self) -> bool:
        """Whether an operation has timed out, or the group was aborted."""
        return bool(self._broken)

    @property
    def position(self) -> tuple[str, int]:
        """The process group, and the number of its operation that has begun last."""
        return self._whose, self._begun

    @property
    def current(self) -> bool:
        """Whether the caller is the thread of the lane."""
        return self._thread is threading.current_thread()

    def submit(self, operation: Operation) -> None:
        """Queue an operation."""
        self._refuse()
        with self._lock:
            self._queue.append(operation)
            if self._crowded and self._threaded:
                self._try()
            if not operation.done:
                self._wake()
        if not self._threaded:
            self.complete(operation)

    def run(self, operation: Operation) -> None:
        """Do an operation, after those queued."""
        self._refuse()
        with self._lock:
            self._queue.append(operation)
        self.complete(operation)

    def watch(self, message: Polled) -> None:
        """Let the thread look after a message."""
        with self._lock:
            self._messages.append(message)
            self._wake()

    def complete(self, operation: Operation, seconds: float | None = None) -> bool:
        """Return whether an operation has ended: wait for that, for ever or ``seconds``."""
        until = None if seconds is None else monotonic() + seconds
        with self._lock:
            self._waiting += 1
            try:
                while not operation.done:
                    if self._queue and not self._running:
                        self._next()
                    elif not self._done.wait(None if until is None else max(0.0, until - monotonic())):
                        return False
            finally:
                self._waiting -= 1
        return True

    def stop(self) -> None:
        """Refuse further operations, and end the thread when it has done those queued."""
        with self._lock:
            self._ended = True
            self._work.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_FAREWELL)
            atexit.unregister(self.stop)

    def abort(self, reason: str) -> None:
        """Let all operations queued and to come fail."""
        self._broken = self._broken or reason

    def _refuse(self) -> None:
        if self._broken or self._ended:
            raise dist.DistBackendError(f"{self._whose} cannot be used any more: {self._broken or 'it is shut down'}")

    def _wake(self) -> None:
        """Let the thread look at what there is to do; the lock is held."""
        if self._threaded and self._thread is None and not self._ended:
            self._thread = threading.Thread(target=self._run, name=f"sfb {self._whose}", daemon=True)
            self._thread.start()
            atexit.register(self.stop)  # before MPI is finalized
        self._work.notify()

    def _run(self) -> None:
        with self._lock:
            while not (self._ended and not self._queue):
                if self._queue and not self._running:
                    self._next()
                elif self._messages:
                    messages = list(self._messages)
                    self._lock.release()
                    try:
                        over = [message for message in messages if message.poll()]
                    finally:
                        self._lock.acquire()
                    self._messages = [message for message in self._messages if message not in over]
                    if self._messages:
                        self._work.wait(_TICK)
                elif not self._ended:
                    self._work.wait()
                else:
                    self._done.wait(_TICK)

    def _try(self) -> None:
        """Do the only operation, if the other ranks come soon; the lock is held before and after."""
        if self._running or len(self._queue) > 1:
            return
        if self._next(self._patience):
            self._patience = min(2 * self._patience, _PATIENCE)
        else:
            self._patience = max(self._patience / 2, _IMPATIENCE)

    def _next(self, patience: float = inf) -> bool:
        """Do the oldest operation, and return True; the lock is held before and after.

        If other ranks do not come for ``patience`` seconds, leave it to the next caller and return False.
        """
        operation = self._queue.popleft()
        self._running = True
        fresh = operation.begun is None
        self._begun += fresh
        self._lock.release()
        error: BaseException | None = None
        ended = True
        try:
            if self._broken:
                self._refuse()
            NOW.call = [operation.what, self, operation, None]
            with span(operation.what, "exchange", label=self._whose, number=self._begun, flags=BLOCKING * fresh):
                ended = self._advance(operation, patience)
        except BaseException as caught:
            error = caught
            if isinstance(caught, dist.DistBackendError) or not isinstance(caught, Exception):
                self.abort(str(caught) or repr(caught))
        finally:
            NOW.call = None
        self._lock.acquire()
        self._running = False
        if not ended:
            self._queue.appendleft(operation)
            return False
        operation.done = True
        self._done.notify_all()
        if self._queue:
            self._work.notify()
        self._lock.release()
        try:
            # The lock is free and nothing runs: what a future calls back may begin operations and wait for them.
            operation.finish(error)
        finally:
            self._lock.acquire()
        if error is not None and not isinstance(error, Exception):
            raise error
        return True

    def _advance(self, operation: Operation, patience: float) -> bool:
        """Go on with an operation until it ends, or other ranks do not come for ``patience`` seconds."""
        if operation.begun is None:
            operation.begun = operation.steps()
        while True:
            if operation.request is None:
                operation.request, operation.since = next(operation.begun, None), monotonic()
                if operation.request is None:
                    return True
            left = operation.seconds - (monotonic() - operation.since)
            if wait_until(operation.request.Test, min(left, patience), self._is_idle):
                operation.request = None
            elif patience < left:
                return False
            else:
                abandon(operation.request, operation.begun)  # these steps have the buffers
                raise timed_out(operation.what, self._whose, operation.seconds)

    def _is_idle(self) -> bool:
        """Return whether the core has nothing else to do than to wait."""
        return self._waiting > 0 and not self._crowded
