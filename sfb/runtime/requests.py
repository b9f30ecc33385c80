"""Exchanges under way: the queue in which they advance, a thread that advances it, and requests like those of MPI."""

from __future__ import annotations

import atexit
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import sleep
from types import TracebackType
from typing import Any, Protocol

from mpi4py import MPI

from sfb.runtime.limits import PENDING_ARRAYS, PENDING_CALLS
from sfb.runtime.steps import ALONE, POSTED

__all__ = ["Persistent", "PolledRequest", "Progress", "Queue", "QueuedExchange", "Request", "Ticker"]

# Seconds to wait, when the program ends, for a thread that may be inside MPI.
_PATIENCE = 5.0


class QueuedExchange:
    """An exchange under way, in steps (`sfb.runtime.steps`).

    Args:
        steps: The steps of the exchange.

    Attributes:
        pending: The object that the exchange waits for; None if it can go on.
        posted: Whether the exchange has posted its last collective.
        done: Whether the exchange has ended.
        error: The exception that ended the exchange; None if it succeeded.
        result: The result of the exchange, if it succeeded.
        on_end: A function that the end of the exchange calls.
    """

    __slots__ = ("_alone", "_steps", "done", "error", "on_end", "pending", "posted", "result")

    def __init__(self, steps: Iterator[Any]) -> None:
        self._steps = steps
        self._alone = False
        self.pending: Any = None
        self.posted = False
        self.done = False
        self.error: Exception | None = None
        self.result: Any = None
        self.on_end: Callable[[], None] | None = None

    @classmethod
    def finished(cls, result: Any) -> QueuedExchange:
        """Return an exchange that was done as it began."""
        exchange = cls(iter(()))
        exchange.result, exchange.done = result, True
        return exchange

    def end(self) -> None:
        """Mark the exchange as ended, and call `on_end`."""
        self.done = True
        call, self.on_end = self.on_end, None
        if call is not None:
            call()

    def step(self) -> None:
        """Take the next step."""
        try:
            step = next(self._steps)
        except StopIteration as last:
            self.result = last.value
            self.end()
        except Exception as error:
            self._fail(error)
        except BaseException as interrupt:  # the steps cannot go on from it
            failure = RuntimeError("an interrupt ended the exchange on this rank; other ranks may wait for it")
            failure.__cause__ = interrupt
            self._fail(failure)
            raise
        else:
            self.posted = self.posted or step is POSTED
            self._alone = step is ALONE
            self.pending = None if step is ALONE or step is POSTED else step

    def advance(self, oldest: bool) -> None:
        """Go on as far as possible without waiting.

        Args:
            oldest: Whether no older exchange is under way.
        """
        while not self.done:
            if self._alone and not oldest:
                return
            if self.pending is not None:
                try:
                    if not self.pending.Test():
                        return
                except Exception as error:
                    self._fail(error)
                    return
            self.step()

    def wait_for_step(self) -> None:
        """Wait for the object that the exchange waits for."""
        if self.pending is None:
            return
        try:
            self.pending.Wait()
        except Exception as error:
            self._fail(error)
        self.pending = None

    def _fail(self, error: Exception) -> None:
        """End the exchange with an exception, which Wait or Test of its request raises."""
        self.error = error
        self.end()


class Queue:
    """The exchanges under way, in the order of the calls that began them.

    All ranks have to post the collectives of a communicator in the same order. So an exchange advances only when all
    older ones have posted theirs.
    """

    def __init__(self) -> None:
        self._exchanges: deque[QueuedExchange] = deque()
        self._arrays = 0
        self.lock = threading.RLock()

    @property
    def busy(self) -> bool:
        """Whether any exchange is under way."""
        return bool(self._exchanges)

    def begin(self, propose: Callable[[bool], Iterator[Any]]) -> QueuedExchange:
        """Add an exchange.

        Args:
            propose: Proposes the exchange to the other ranks, and returns its steps; the first step posts no
                collective. The argument tells whether no other exchange is under way.
        """
        with self.lock:
            while len(self._exchanges) >= PENDING_CALLS:
                self._wait_for_oldest()
            alone = not self._exchanges
            if alone:
                self._arrays = 0
            exchange = QueuedExchange(propose(alone))
            self._exchanges.append(exchange)
            exchange.step()
            if exchange.pending is None:
                self.advance()
        return exchange

    def advance(self) -> None:
        """Let all exchanges go on as far as they can without waiting."""
        with self.lock:
            while self._exchanges and self._advance(self._exchanges[0], True).done:
                self._exchanges.popleft()
            ready = bool(self._exchanges) and self._exchanges[0].posted
            for exchange in list(self._exchanges)[1:]:
                if not ready:
                    return
                ready = self._advance(exchange, False).posted

    @staticmethod
    def _advance(exchange: QueuedExchange, oldest: bool) -> QueuedExchange:
        exchange.advance(oldest)
        return exchange

    def finish(self, exchange: QueuedExchange) -> None:
        """Wait for the end of an exchange."""
        while not exchange.done:
            with self.lock:
                if self._exchanges and self._exchanges[0] is exchange:
                    self._wait_for_oldest()
                else:
                    self.advance()

    def make_room(self) -> None:
        """Count a call of plain arrays beside the exchanges under way; wait for the exchanges if there are too many."""
        self._arrays += 1
        if self._arrays >= PENDING_ARRAYS:
            self.drain()

    def drain(self) -> None:
        """Wait for the end of all exchanges."""
        while self._exchanges:
            with self.lock:
                if self._exchanges:
                    self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        oldest = self._exchanges[0]
        while not oldest.done:
            oldest.wait_for_step()
            oldest.advance(True)
        if len(self._exchanges) == 1:
            self._exchanges.clear()
        else:
            self.advance()


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
            return PolledRequest(self.queue, queued)
        self.wake()
        return Request(self.queue, queued)

    def stop(self) -> None:
        """Wait for the end of all exchanges, and end the thread."""
        self.queue.drain()
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None


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
