"""Requests for exchanges, like those of MPI."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from mpi4py import MPI

from sfb.runtime.queue import Queue, QueuedExchange
from sfb.trace.now import NOW
from sfb.trace.spans import span

__all__ = ["Persistent", "PolledRequest", "Request"]


class _Waiting:
    """A request for an exchange, with the methods of MPI's requests."""

    _queue: Queue
    _queued: QueuedExchange | None
    _result: Any = None

    def Wait(self, status: MPI.Status | None = None) -> bool:
        """Wait for the end of the exchange: the receiver then holds the result.

        Raises:
            RuntimeError: The request is not active: the exchange has been waited for already.
            MismatchError, TypeError, ValueError: The arguments of the call were wrong, on this or another rank.
        """
        queued = self._active()
        if NOW.on:
            with span("Wait", "exchange"):
                self._queue.finish(queued)
        else:
            self._queue.finish(queued)
        return self._end(queued)

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Advance the exchange without waiting, and return whether it has ended; raise as `Wait` does."""
        queued = self._active()
        self._queue.advance()
        return queued.done and self._end(queued)

    wait, test = Wait, Test

    @property
    def exchange(self) -> Any:
        """How the last exchange went on this rank, a `sfb.Exchange`; None before the first has ended."""
        return self._result

    def _active(self) -> QueuedExchange:
        if self._queued is None:
            raise RuntimeError("the request is not active: it has been waited for already")
        return self._queued

    def _end(self, queued: QueuedExchange) -> bool:
        self._queued = None
        if queued.error is not None:
            raise queued.error
        self._result = queued.result
        return True

    @staticmethod
    def Waitall(requests: Sequence[Any], statuses: Any = None) -> bool:
        """Wait for all ``requests``, which may be of this library and of mpi4py."""
        pending = list(requests)
        while pending:
            pending = [request for request in pending if not request.Test()]
        return True


class PolledRequest(_Waiting):
    """A request for an `Iallreduce` that advances only inside calls of this library, such as `Wait` and `Test`.

    mpi4py's own Waitall does not take such a request; `Request.Waitall` takes it beside requests of mpi4py.
    """

    def __init__(self, queue: Queue, queued: QueuedExchange) -> None:
        self._queue = queue
        self._queued = queued


class Request(_Waiting, MPI.Grequest):  # type: ignore[misc]
    """A request for an `Iallreduce` that a thread advances; an `MPI.Request`."""

    def __new__(cls, queue: Queue, queued: QueuedExchange) -> Request:
        """Make a generalized request of MPI, which the end of the exchange completes."""
        raising = _Raising()
        general = MPI.Grequest.Start(raising.query, *_NO_CALLBACKS)
        self = super().__new__(cls, general)
        self._queue = queue
        self._queued = queued

        def complete() -> None:
            if queued.error is not None:
                raising.arm(queued.error)
            general.Complete()

        with queue.lock:  # the thread may be about to end it
            queued.on_end = complete
            if queued.done:
                queued.end()
        return self

    def _end(self, queued: QueuedExchange) -> bool:
        if queued.error is None:
            MPI.Grequest.Wait(self)
        return super()._end(queued)


# What MPI calls when a generalized request is freed or cancelled: no bytecode, since an exception of another request
# may be on its way (`_Raising`).
_NO_CALLBACKS: tuple[Callable[..., Any], Callable[..., Any]] = list, list

# CPython's function, which MPI's callback gives one argument more than it takes.
_set_async_exception = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


class _Raising:
    """Raises the exception of an exchange where mpi4py's Waitall, Testall and their siblings return.

    mpi4py turns what a callback of MPI raises into a code. So the callback asks the interpreter to raise the exception
    in this thread as soon as it runs bytecode again, which is when mpi4py's function has returned.

    Attributes:
        query: The callback.
    """

    def __init__(self) -> None:
        self._thread = ctypes.c_ulong(0)  # no thread, until `arm`
        self._kind: ctypes.py_object[Any] = ctypes.py_object(None)
        self._caller = threading.get_ident()
        self.query = partial(_set_async_exception, self._thread, self._kind)

    def arm(self, error: Exception) -> None:
        """Let `query` raise an exception in the thread that has made this object."""

        class Deferred(Exception):
            def __new__(cls) -> Exception:  # type: ignore[misc]  # what the interpreter raises
                return error

        self._kind.value, self._thread.value = Deferred, self._caller


class Persistent(_Waiting):
    """A persistent request for the Allreduce of the same arrays, as often as wanted; from `Comm.Allreduce_init`.

    `Start` begins an exchange, and `Wait` or `Test` ends it.

    Args:
        plan: The plan, ready for exchanges.
        queue: The exchanges of the communicator that are under way.
        begin: Begins an exchange in that queue.

    Attributes:
        plan: The `Plan`: the algorithm chosen, with the estimates behind the choice.
    """

    def __init__(self, plan: Any, queue: Queue, begin: Callable[[], QueuedExchange]) -> None:
        self.plan = plan
        self._queue = queue
        self._begin: Callable[[], QueuedExchange] | None = begin
        self._queued = None

    def explain(self) -> str:
        """Return a table of the algorithms, with the chosen one and the reason for it."""
        return self.plan.explain()

    def Start(self) -> None:
        """Begin an exchange; collective, in the same order as other calls on all ranks.

        A short exchange goes on only inside calls of this library: call `Wait` or `Test` before waiting for other ranks
        by other means. Wait and Test raise the errors of this and other ranks, and MismatchError if ranks start
        different plans.

        Raises:
            RuntimeError: The exchange before has not been waited for, or the plan or its communicator is freed.
        """
        if self._begin is None:
            raise RuntimeError("the plan is freed")
        if self._queued is not None:
            raise RuntimeError("the plan is active: Wait for the exchange that Start began")
        self._queued = self._begin()

    def Free(self) -> None:
        """Free the plan; a second call does nothing.

        Raises:
            RuntimeError: An exchange is under way.
        """
        if self._queued is not None:
            raise RuntimeError("the plan is active: Wait before Free")
        self._begin = None

    def __enter__(self) -> Persistent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.Free()

    def _active(self) -> QueuedExchange:
        if self._begin is None:
            raise RuntimeError("the plan is freed")
        if self._queued is None:
            raise RuntimeError("the plan is not active: Start it first")
        return self._queued
