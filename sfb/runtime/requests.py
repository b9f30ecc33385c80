"""Exchanges under way: the order in which they advance, and the requests by which users wait for them."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import sleep
from typing import Any, Protocol

from mpi4py import MPI

from sfb.runtime.limits import PENDING_ARRAYS, PENDING_CALLS
from sfb.runtime.steps import ALONE, POSTED

__all__ = ["PolledRequest", "Queue", "Request", "Ticker"]

# Seconds to wait for a thread that may be inside MPI when the program ends.
_PATIENCE = 5.0


class Exchange:
    """One exchange under way, a generator of things to wait for; its first step, None, is not waited for.

    Attributes:
        done: Whether it has ended.
        error: What it ended with, if it failed.
        result: What it returned otherwise.
    """

    __slots__ = ("alone", "done", "error", "on_end", "pending", "posted", "result", "steps")

    def __init__(self, steps: Iterator[Any]) -> None:
        self.steps = steps
        self.pending: Any = None
        self.posted = False
        self.alone = False
        self.done = False
        self.error: Exception | None = None
        self.result: Any = None
        self.on_end: Callable[[], None] | None = None

    def end(self) -> None:
        """Tell whoever waits for it by other means than this library."""
        self.done = True
        tell, self.on_end = self.on_end, None
        if tell is not None:
            tell()

    def advance(self, oldest: bool) -> None:
        """Go on as far as possible without waiting."""
        while not self.done:
            if self.alone:
                if not oldest:
                    return
                self.alone = False
            elif self.pending is not None:
                if not self.pending.Test():
                    return
                self.pending = None
            try:
                step = next(self.steps)
            except StopIteration as last:
                self.result = last.value
                self.end()
            except Exception as error:  # of this exchange, whoever advances it
                self.error = error
                self.end()
            else:
                self.posted = self.posted or step is POSTED
                self.alone = step is ALONE
                if step is not ALONE and step is not POSTED:
                    self.pending = step


class Queue:
    """Exchanges in the order of the calls that began them.

    MPI demands that all ranks post the collectives of a communicator in the same order. So an exchange
    advances only when all older ones have posted theirs.
    """

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque()
        self._plain = 0
        self.lock = threading.RLock()

    @property
    def busy(self) -> bool:
        """Whether exchanges are under way."""
        return bool(self._exchanges)

    def begin(self, steps: Iterator[Any]) -> Exchange:
        """Add an exchange, which has run to its first step."""
        exchange = Exchange(steps)
        with self.lock:
            while len(self._exchanges) >= PENDING_CALLS:
                self._wait_for_oldest()
            if not self._exchanges:
                self._plain = 0
            self._exchanges.append(exchange)
            next(steps)  # shows the other ranks what is to come
            self.advance()
        return exchange

    def advance(self) -> None:
        """Let every exchange go on as far as it can without waiting."""
        with self.lock:
            while self._exchanges and self._step(self._exchanges[0], True).done:
                self._exchanges.popleft()
            ready = bool(self._exchanges) and self._exchanges[0].posted
            for exchange in list(self._exchanges)[1:]:
                if not ready:
                    return
                ready = self._step(exchange, False).posted

    @staticmethod
    def _step(exchange: Exchange, oldest: bool) -> Exchange:
        exchange.advance(oldest)
        return exchange

    def finish(self, exchange: Exchange) -> None:
        """Wait for an exchange."""
        while not exchange.done:
            with self.lock:
                self.advance()
                if not exchange.done and self._exchanges and self._exchanges[0] is exchange:
                    self._wait_for_oldest()

    def make_room(self) -> None:
        """Count a call of plain arrays beside the exchanges under way; wait for these if there are too many."""
        self._plain += 1
        if self._plain >= PENDING_ARRAYS:
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
            if oldest.pending is not None:
                oldest.pending.Wait()
                oldest.pending = None
            oldest.advance(True)
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
    """What users do with an exchange under way, as with an MPI request."""

    _queue: Queue
    _exchange: Exchange | None

    def Wait(self, status: MPI.Status | None = None) -> bool:
        """Wait for the exchange; the receiver is whole then.

        Raises:
            RuntimeError: It has been waited for already.
            MismatchError, TypeError, ValueError: The call was wrong, on this or another rank.
        """
        exchange = self._under_way()
        self._queue.finish(exchange)
        return self._end(exchange)

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Let the exchange go on without waiting, and return whether it is complete; raises as `Wait` does."""
        exchange = self._under_way()
        self._queue.advance()
        return exchange.done and self._end(exchange)

    wait, test = Wait, Test

    @property
    def exchange(self) -> Any:
        """How the exchange went on this rank; None until it is complete."""
        return self._result

    _result: Any = None

    def _under_way(self) -> Exchange:
        if self._exchange is None:
            raise RuntimeError("the request is not active: it has been waited for already")
        return self._exchange

    def _end(self, exchange: Exchange) -> bool:
        self._exchange = None
        self._result = exchange.result
        if exchange.error is not None:
            raise exchange.error
        return True

    @staticmethod
    def Waitall(requests: Sequence[Any], statuses: Any = None) -> bool:
        """Wait for all ``requests``, of this library and of mpi4py."""
        pending = list(requests)
        while pending:
            pending = [request for request in pending if not request.Test()]
        return True

    @staticmethod
    def Testall(requests: Sequence[Any], statuses: Any = None) -> bool:
        """Return whether all ``requests``, of this library and of mpi4py, are complete; none is given up before."""
        return all(
            request.is_complete() if isinstance(request, _Waiting) else request.Get_status() for request in requests
        ) and _Waiting.Waitall(requests)

    def is_complete(self) -> bool:
        """Return whether the exchange is complete, without giving the request up."""
        self._queue.advance()
        return self._exchange is None or self._exchange.done


class PolledRequest(_Waiting):
    """An `Iallreduce` under way that goes on only inside calls of this library: `Wait`, `Test` and the like.

    mpi4py's own Waitall does not take it; `Request.Waitall` takes it beside requests of mpi4py.
    """

    def __init__(self, queue: Queue, exchange: Exchange) -> None:
        self._queue = queue
        self._exchange = exchange


class Request(_Waiting, MPI.Grequest):  # type: ignore[misc]
    """An `Iallreduce` under way, which a thread takes forward; an `MPI.Request`."""

    def __new__(cls, queue: Queue, exchange: Exchange) -> Request:
        """Make a generalized request of MPI that is complete when the exchange is."""

        def query(status: MPI.Status) -> None:
            if exchange.error is not None:  # to whoever waits by MPI's own means
                raise exchange.error

        general = MPI.Grequest.Start(query, lambda: None, lambda complete: None)
        self = super().__new__(cls, general)
        self._queue = queue
        self._exchange = exchange
        with queue.lock:  # the thread may be about to end it
            exchange.on_end = general.Complete
            if exchange.done:
                exchange.end()
        return self

    def _end(self, exchange: Exchange) -> bool:
        if exchange.error is None:
            MPI.Grequest.Wait(self)
        return super()._end(exchange)
