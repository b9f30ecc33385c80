"""Persistent exchanges: prepared once, done many times."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from mpi4py import MPI

from sfb.tuning.plan import Plan

__all__ = ["Persistent"]


class Persistent:
    """An Allreduce of the same arrays, done by `Start` and `Wait` as often as wanted; from `Comm.Allreduce_init`.

    Args:
        plan: The algorithm and its buffers.
        start: Begins one exchange.
    """

    def __init__(self, plan: Plan, start: Callable[[], Any]) -> None:
        self._plan = plan
        self._start: Callable[[], Any] | None = start
        self._request: Any = None
        self._last: Any = None

    def explain(self) -> str:
        """Return which algorithm was chosen, and why."""
        return self._plan.explain()

    @property
    def plan(self) -> Plan:
        """The algorithm chosen, with the estimates it was chosen by."""
        return self._plan

    @property
    def exchange(self) -> Any:
        """How the last exchange went on this rank; None before the first."""
        return self._last

    def Start(self) -> None:
        """Begin an exchange; collective, in the same order as other calls on all ranks.

        Raises:
            RuntimeError: The last one has not been waited for, or the plan is freed.
        """
        if self._start is None:
            raise RuntimeError("the plan is freed")
        if self._request is not None:
            raise RuntimeError("the plan is active: Wait for the exchange that Start began")
        self._request = self._start()

    def Wait(self, status: MPI.Status | None = None) -> bool:
        """Wait for the exchange.

        Raises:
            RuntimeError: None has been started, or the plan is freed.
            MismatchError: Ranks started different plans; raised on every rank.
        """
        request, self._request = self._active(), None
        request.Wait()
        self._last = request.exchange
        return True

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Let the exchange go on without waiting, and return whether it is complete; raises as `Wait` does."""
        request = self._active()
        if not request.Test():
            return False
        self._request, self._last = None, request.exchange
        return True

    def Free(self) -> None:
        """Give the plan up; harmless when repeated.

        Raises:
            RuntimeError: An exchange is under way.
        """
        if self._request is not None:
            raise RuntimeError("the plan is active: Wait before Free")
        self._start = None

    def __enter__(self) -> Persistent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.Free()

    def _active(self) -> Any:
        if self._start is None:
            raise RuntimeError("the plan is freed")
        if self._request is None:
            raise RuntimeError("the plan is not active: Start it first")
        return self._request
