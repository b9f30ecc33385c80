"""Exchanges under way: the queue in which they advance, a thread for it, and MPI-style requests."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import sleep
from types import TracebackType
from typing import Any, Protocol

from mpi4py import MPI

from sfb.runtime.limits import PENDING_ARRAYS, PENDING_CALLS
from sfb.runtime.steps import ALONE, POSTED

__all__ = ["Persistent", "PolledRequest", "Queue", "QueuedExchange", "Request", "Ticker"]

# Seconds to wait for a thread that may be inside MPI when the program ends.
_PATIENCE = 5.0


class QueuedExchange:
    """An exchange under way, in steps (`sfb.runtime.steps`).

    Args:
        steps: The exchange.

    Attributes:
        pending: What the exchange waits for, None if it can go on.
        posted: Whether it will post no more collectives.
        done: Whether it has ended.
        error: The exception that ended it, if it failed.
        result: What it returned otherwise.
        on_end: Called when it ends.
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

    def end(self) -> None:
        """Note that the exchange has ended, and tell who asked to be told."""
        self.done = True
        tell, self.on_end = self.on_end, None
        if tell is not None:
            tell()

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
            ended = RuntimeError("an interrupt ended the exchange on this rank; the others may wait for it")
            ended.__cause__ = interrupt
            self._fail(ended)
            raise
        else:
            self.posted = self.posted or step is POSTED
            self._alone = step is ALONE
            self.pending = None if step is ALONE or step is POSTED else step

    def advance(self, oldest: bool) -> None:
        """Go on as far as possible without waiting; ``oldest`` if no older exchange is under way."""
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
        """Wait for what the exchange waits for."""
        if self.pending is None:
            return
        try:
            self.pending.Wait()
        except Exception as error:
            self._fail(error)
        self.pending = None

    def _fail(self, error: Exception) -> None:
        """Note the exception that ended the exchange, for the caller of Wait or Test, whoever met it."""
        self.error = error
        self.end()


class Queue:
    """Exchanges in the order of the calls that began them.

    MPI demands that all ranks post the collectives of a communicator in the same order. So an exchange
    advances only when all older ones have posted theirs.
    """

    def __init__(self) -> None:
        self._exchanges: deque[QueuedExchange] = deque()
        self._arrays = 0
        self.lock = threading.RLock()

    @property
    def busy(self) -> bool:
        """Whether exchanges are under way."""
        return bool(self._exchanges)

    def begin(self, propose: Callable[[bool], Iterator[Any]]) -> QueuedExchange:
        """Add an exchange.

        Args:
            propose: Proposes the exchange to the other ranks and returns its steps, the first of which posts no
                collective; its argument tells whether no other exchange is under way.
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
        """Let every exchange go on as far as it can without waiting."""
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
        """Wait for an exchange."""
        while not exchange.done:
            with self.lock:
                if self._exchanges and self._exchanges[0] is exchange:
                    self._wait_for_oldest()
                else:
                    self.advance()

    def make_room(self) -> None:
        """Count a call of plain arrays beside the exchanges under way; wait for these if there are too many."""
        self._arrays += 1
        if self._arrays >= PENDING_ARRAYS:
            self.drain()

    def drain(self) -> None:
        """Wait for all exchanges."""
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
    """What a thread can take forward."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""

    def advance(self) -> Any:
        """Do what is possible now."""


class Ticker:
    """A thread that lets a queue advance from time to time while anything is in it.

    Args:
        queue: To be advanced.
        interval: Seconds between two looks.
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
        """Look after the queue until it is empty."""
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


class _Waiting:
    """The methods by which users wait for an exchange, as for an MPI request."""

    _queue: Queue
    _queued: QueuedExchange | None
    _result: Any = None

    def Wait(self, status: MPI.Status | None = None) -> bool:
        """Wait for the exchange; the receiver is whole then.

        Raises:
            RuntimeError: The request is not active: it has been waited for already.
            MismatchError, TypeError, ValueError: The call was wrong, on this or another rank.
        """
        queued = self._active()
        self._queue.finish(queued)
        return self._end(queued)

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Let the exchange go on without waiting, and return whether it is complete; raises as `Wait` does."""
        queued = self._active()
        self._queue.advance()
        return queued.done and self._end(queued)

    wait, test = Wait, Test

    @property
    def exchange(self) -> Any:
        """How the last exchange went on this rank, a `sfb.Exchange`; None before the first is complete."""
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
        """Wait for all ``requests``, of this library and of mpi4py."""
        pending = list(requests)
        while pending:
            pending = [request for request in pending if not request.Test()]
        return True


class PolledRequest(_Waiting):
    """An `Iallreduce` under way that goes on only inside calls of this library: `Wait`, `Test` and the like.

    mpi4py's own Waitall does not take it; `Request.Waitall` takes it beside requests of mpi4py.
    """

    def __init__(self, queue: Queue, queued: QueuedExchange) -> None:
        self._queue = queue
        self._queued = queued


class Request(_Waiting, MPI.Grequest):  # type: ignore[misc]
    """An `Iallreduce` under way, which a thread takes forward; an `MPI.Request`."""

    def __new__(cls, queue: Queue, queued: QueuedExchange) -> Request:
        """Make a generalized request of MPI that is complete when the exchange is."""

        def query(status: MPI.Status) -> None:
            if queued.error is not None:  # raised to callers that wait by MPI's own functions
                raise queued.error

        general = MPI.Grequest.Start(query, lambda: None, lambda complete: None)
        self = super().__new__(cls, general)
        self._queue = queue
        self._queued = queued
        with queue.lock:  # the thread may be about to end it
            queued.on_end = general.Complete
            if queued.done:
                queued.end()
        return self

    def _end(self, queued: QueuedExchange) -> bool:
        if queued.error is None:
            MPI.Grequest.Wait(self)
        return super()._end(queued)


class Persistent(_Waiting):
    """An Allreduce of the same arrays, done by `Start` and `Wait` as often as wanted; from `Comm.Allreduce_init`.

    Args:
        plan: The plan, with everything that it needs in place.
        queue: The exchanges of the communicator that are under way.
        begin: Begins one exchange in that queue.

    Attributes:
        plan: The `Plan`: the algorithm chosen, with the estimates that chose it.
    """

    def __init__(self, plan: Any, queue: Queue, begin: Callable[[], QueuedExchange]) -> None:
        self.plan = plan
        self._queue = queue
        self._begin: Callable[[], QueuedExchange] | None = begin
        self._queued = None

    def explain(self) -> str:
        """Return a table of the algorithms, the one chosen and the reason."""
        return self.plan.explain()

    def Start(self) -> None:
        """Begin an exchange; collective, in the same order as other calls on all ranks.

        What is wrong, on this or another rank, is raised by Wait or Test; so is MismatchError if ranks start different
        plans.

        Raises:
            RuntimeError: The last one has not been waited for, or the plan is freed.
        """
        if self._begin is None:
            raise RuntimeError("the plan is freed")
        if self._queued is not None:
            raise RuntimeError("the plan is active: Wait for the exchange that Start began")
        self._queued = self._begin()

    def Free(self) -> None:
        """Give the plan up; harmless when repeated.

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
