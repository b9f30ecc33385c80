"""Exchanges under way, and the queue in which they advance."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from sfb.runtime.limits import PENDING_ARRAYS, PENDING_CALLS
from sfb.runtime.steps import ALONE, POSTED

__all__ = ["Queue", "QueuedExchange"]


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
            self.fail(error)
        except BaseException as interrupt:  # the steps cannot go on from it
            failure = RuntimeError("an interrupt ended the exchange on this rank; other ranks may wait for it")
            failure.__cause__ = interrupt
            self.fail(failure)
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
                    self.fail(error)
                    return
            self.step()

    def wait_for_step(self) -> None:
        """Wait for the object that the exchange waits for."""
        if self.pending is None:
            return
        try:
            self.pending.Wait()
        except Exception as error:
            self.fail(error)
        self.pending = None

    def fail(self, error: Exception) -> None:
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

    def abandon(self, error: Exception) -> list[QueuedExchange]:
        """End all exchanges with an exception, which their requests raise, where they are; return them."""
        with self.lock:
            exchanges = list(self._exchanges)
            self._exchanges.clear()
            for exchange in exchanges:
                if not exchange.done:
                    exchange.fail(error)
        return exchanges

    def _wait_for_oldest(self) -> None:
        oldest = self._exchanges[0]
        while not oldest.done:
            oldest.wait_for_step()
            oldest.advance(True)
        if len(self._exchanges) == 1:
            self._exchanges.clear()
        else:
            self.advance()
