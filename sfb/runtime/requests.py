"""Requests for exchanges, like those of MPI."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from operator import mul
from types import TracebackType
from typing import Any, Literal

from mpi4py import MPI

from sfb.runtime.completion import Completion, set_empty
from sfb.runtime.queue import Queue, QueuedExchange
from sfb.trace.now import NOW
from sfb.trace.spans import span

__all__ = ["Persistent", "PolledRequest", "Request"]


class _Waiting(Completion):
    """A request for an exchange, with the methods of MPI's requests."""

    _queue: Queue
    _queued: QueuedExchange | None
    _result: Any = None

    def Wait(self, status: MPI.Status | None = None) -> Literal[True]:
        """Wait for the end of the exchange: the receiver then holds the result.

        A request that is not active returns at once, as MPI's do.

        Raises:
            MismatchError, TypeError, ValueError: The arguments of the call were wrong, on this or another rank.
        """
        queued = self._queued
        if status is not None:
            set_empty(status)
        if queued is not None:
            if NOW.on:
                with span("Wait", "exchange"):
                    self._queue.finish(queued)
            else:
                self._queue.finish(queued)
            self._end(queued)
        return True

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Advance the exchange without waiting, and return whether it has ended; raise as `Wait` does."""
        queued = self._queued
        if queued is not None:
            self._queue.advance()
            if not queued.done:
                return False
            self._end(queued)
        if status is not None:
            set_empty(status)
        return True

    def Get_status(self, status: MPI.Status | None = None) -> bool:
        """Advance the exchange without waiting, and return whether it has ended; the request stays as it is."""
        queued = self._queued
        if queued is not None:
            self._queue.advance()
            if not queued.done:
                return False
        if status is not None:
            set_empty(status)
        return True

    def wait(self, status: MPI.Status | None = None) -> None:
        """Wait as `Wait` does; return the object received, None, as those of mpi4py do."""
        self.Wait(status)

    def test(self, status: MPI.Status | None = None) -> tuple[bool, None]:
        """Test as `Test` does; return that and the object received, None, as those of mpi4py do."""
        return self.Test(status), None

    get_status = Get_status

    @property
    def active(self) -> bool:
        """Whether an exchange has begun that has not been waited for."""
        return self._queued is not None

    @property
    def failed(self) -> bool:
        """Whether the exchange has ended with an error, which `Wait` and `Test` would raise."""
        return self._queued is not None and self._queued.done and self._queued.error is not None

    @property
    def exchange(self) -> Any:
        """How the last exchange went on this rank, a `sfb.Exchange`; None before the first has ended."""
        return self._result

    def Cancel(self) -> None:
        """Raise MPI.ERR_REQUEST, as requests of MPI's collectives do: exchanges cannot be cancelled."""
        raise MPI.Exception(MPI.ERR_REQUEST)

    cancel = Cancel

    def _end(self, queued: QueuedExchange) -> None:
        self._queued = None
        if queued.error is not None:
            raise queued.error
        self._result = queued.result


class PolledRequest(_Waiting):
    """A request for an `Iallreduce` that advances only inside calls of this library, such as `Wait` and `Test`.

    mpi4py's own Waitall does not take such a request; `Request.Waitall` takes it beside requests of mpi4py.
    """

    def __init__(self, queue: Queue, queued: QueuedExchange) -> None:
        self._queue = queue
        self._queued = queued

    def __bool__(self) -> bool:
        """Return whether the request is active; MPI's are null then."""
        return self._queued is not None

    def Free(self) -> None:
        """Let go of the request; the exchange goes on in later calls."""
        self._queued = None

    free = Free


class Request(_Waiting, MPI.Grequest):
    """A request for an `Iallreduce` that a thread advances; an `MPI.Request`.

    Args:
        queue: The exchanges of the communicator that are under way.
        queued: The exchange.

    >>> from mpi4py import MPI
    >>> import numpy as np, sfb
    >>> g, G = sfb.Factors(np.ones((2, 3)), np.ones((2, 4))), np.empty((3, 4))
    >>> with sfb.Comm(MPI.COMM_SELF) as comm:
    ...     request = comm.Iallreduce(g, G)
    ...     done = request.Wait()
    >>> G[0]
    array([2., 2., 2., 2.])
    """

    def __new__(cls, queue: Queue, queued: QueuedExchange) -> Request:
        """Make a generalized request of MPI, which the end of the exchange completes."""
        raising = _Raising()
        general = MPI.Grequest.Start(raising.query, *_NO_CALLBACKS)
        self = super().__new__(cls, general)
        self._queue = queue
        self._queued = queued
        self._raising = raising

        def complete() -> None:
            if queued.error is not None:
                raising.arm(queued.error)
            general.Complete()

        with queue.lock:  # the thread may be about to end it
            queued.on_end = complete
            if queued.done:
                queued.end()
        return self

    _raising: _Raising

    @property
    def active(self) -> bool:
        """Whether the exchange has not been waited for; MPI's functions may have."""
        return self._queued is not None and bool(self)

    def Free(self) -> None:
        """Let go of the request; the exchange goes on."""
        self._queued = None
        MPI.Grequest.Free(self)

    def free(self) -> None:
        """Let go of the request, unless that has been done."""
        if self:
            self.Free()

    def _end(self, queued: QueuedExchange) -> None:
        self._queued = None
        self._raising.disarm()
        if not MPI.Is_finalized():
            MPI.Grequest.Wait(self)
        super()._end(queued)


# What MPI calls when a generalized request is freed or cancelled: no bytecode, since an exception of another request
# may be on its way (`_Raising`).
_NO_CALLBACKS: tuple[Callable[..., Any], Callable[..., Any]] = list, list

# CPython's function.
_set_async_exception = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


class _Raising:
    """Raises the exception of an exchange where mpi4py's Waitall, Testall and their siblings return.

    mpi4py turns what a callback of MPI raises into a code. So the callback asks the interpreter to raise the exception
    in the thread that called MPI as soon as it runs bytecode again, which is when mpi4py's function has returned.

    Attributes:
        query: The callback. All of it is C, since an exception of another request may be on its way.
    """

    def __init__(self) -> None:
        self._armed = ctypes.c_int(0)
        self._kind: ctypes.py_object[Any] = ctypes.py_object(None)
        # The number of the calling thread, or 0, which is no thread, until `arm`.
        thread = map(mul, iter(threading.get_ident, None), iter(partial(getattr, self._armed, "value"), None))
        self.query = partial(next, map(_set_async_exception, thread, repeat(self._kind)))

    def arm(self, error: Exception) -> None:
        """Let `query` raise an exception."""

        kind: Any = type(error)

        # The interpreter makes one, and raises that. Python 3.10 passes None, and matches the class in "except".
        class Deferred(kind):
            def __new__(cls, *arguments: object) -> Any:
                return error

        self._kind.value, self._armed.value = Deferred, 1

    def disarm(self) -> None:
        """Let `query` raise nothing: the caller does."""
        self._armed.value = 0


class Persistent(_Waiting):
    """A persistent request for the Allreduce of the same arrays, as often as wanted; from `Comm.Allreduce_init`.

    `Start` begins an exchange, and `Wait` or `Test` ends it.

    Args:
        plan: The plan, ready for exchanges.
        queue: The exchanges of the communicator that are under way.
        begin: Begins an exchange in that queue.

    Attributes:
        plan: The `Plan`: the algorithm chosen, with the estimates behind the choice.

    >>> from mpi4py import MPI
    >>> import numpy as np, sfb
    >>> g, G = sfb.Factors(np.ones((2, 3)), np.ones((2, 4))), np.empty((3, 4))
    >>> with sfb.Comm(MPI.COMM_SELF) as comm, comm.Allreduce_init(g, G) as plan:
    ...     for _ in range(2):
    ...         plan.Start()
    ...         done = plan.Wait()
    >>> G[0]
    array([2., 2., 2., 2.])
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

    @staticmethod
    def Startall(requests: Sequence[Any]) -> None:
        """Start all ``requests``, of this library and persistent ones of mpi4py, in this order; collective."""
        for request in requests:
            request.Start()

    def Free(self) -> None:
        """Free the plan; a second call does nothing.

        Raises:
            RuntimeError: An exchange is under way.
        """
        if self._queued is not None:
            raise RuntimeError("the plan is active: Wait before Free")
        self._begin = None

    free = Free

    def __bool__(self) -> bool:
        """Return whether the plan has not been freed; MPI's requests are null then."""
        return self._begin is not None

    def __enter__(self) -> Persistent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.Free()
