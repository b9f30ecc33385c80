"""What a process group hands out for operations under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI

from sfb.torch.distributed.lane import Lane, abandon, timed_out, wait_until
from sfb.trace.now import describe

__all__ = ["Collective", "Message", "Together"]

_UNSET = timedelta(0)
_CANCELLING = 0.1  # seconds in which MPI has cancelled a receive


class _Work(dist.Work):
    """An operation, of which others may wait for a future.

    Args:
        tensors: The value of the future.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        super().__init__()
        self._tensors = list(tensors)
        self._error: BaseException | None = None
        self._future: torch.futures.Future[Any] | None = None
        self._outcome: torch.futures.Future[Any] | None = None
        self._ended = False
        self._guard = threading.Lock()

    def describe(self) -> str:
        """Return a text of the tensors."""
        return describe(self._tensors)

    def finish(self, error: BaseException | None) -> None:
        """Keep the error, and complete the future if there is one."""
        with self._guard:
            self._error = error
            self._ended = True
            future = self._future
        if future is not None:
            future.set_result(None)

    def get_future(self) -> torch.futures.Future[Any]:
        """Return a future of the tensors."""
        with self._guard:
            if self._outcome is None:
                self._future = torch.futures.Future()
                # C++ sees an error only if a callback raises it.
                self._outcome = self._future.then(self._take)
                ended = self._ended
            else:
                return self._outcome
        if ended:
            self._future.set_result(None)
        return self._outcome

    def _take(self, _: Any) -> Any:
        if self._error is not None:
            raise self._error
        return self._tensors

    def is_success(self) -> bool:
        """Return whether the operation has ended without an error."""
        return self.is_completed() and self._error is None

    def exception(self) -> BaseException | None:
        """Return the error of the operation."""
        return self._error

    def result(self) -> list[Any]:
        """Return the tensors that hold the result."""
        return self._tensors

    def synchronize(self) -> None:
        """Wait, as `wait` does."""
        self.wait()

    def block_current_stream(self) -> None:
        """Wait, as `wait` does: a processor has no streams."""
        self.wait()


class Collective(_Work):
    """A collective in a lane.

    Args:
        lane: The lane.
        name: The operation, for messages.
        seconds: How long it may wait for other ranks.
        steps: Does it; yields the requests that it waits for.
        tensors: The tensors that hold the result.

    Attributes:
        done: Whether it has ended.
        begun: The steps under way, if it has begun.
        request: What the steps wait for.
        since: Since when, in seconds.
    """

    def __init__(
        self,
        lane: Lane,
        name: str,
        seconds: float,
        steps: Callable[[], Iterator[MPI.Request]],
        tensors: Sequence[Any],
    ) -> None:
        super().__init__(tensors)
        self._lane = lane
        self._name = name
        self.seconds = seconds
        self.steps = steps
        self.done = False
        self.begun: Iterator[MPI.Request] | None = None
        self.request: MPI.Request | None = None
        self.since = 0.0

    @property
    def what(self) -> str:
        """The operation, for messages."""
        if not self._tensors:
            return self._name
        return f"{self._name} of {sum(t.numel() for t in self._tensors)} {self._tensors[0].dtype}".replace("torch.", "")

    def finish(self, error: BaseException | None) -> None:
        """Keep the error, and complete the future if there is one."""
        self.steps = self.begun = self.request = None  # type: ignore[assignment]  # they hold copies of tensors
        super().finish(error)

    def get_future(self) -> torch.futures.Future[Any]:
        """Return a future of the tensors."""
        if self._lane.current and not self.done:
            self._lane.complete(self)  # who waits in a callback holds up the thread that would do it
        return super().get_future()

    def is_completed(self) -> bool:
        """Return whether the operation has ended."""
        return self.done

    def wait(self, timeout: timedelta = _UNSET) -> bool:
        """Wait for the end of the operation, for ``timeout`` at most if that is given.

        Raises:
            DistBackendError: Other ranks did not come within the time-out of the group, or not yet within ``timeout``.
        """
        seconds = timeout.total_seconds()
        if not self.done and not self._lane.complete(self, seconds if seconds > 0 else None):
            raise dist.DistBackendError(f"{self.what}: Timed out after {seconds:g} s of waiting; it goes on")
        if self._error is not None:
            raise self._error
        return True


class Message(_Work):
    """A message to or from another rank.

    Args:
        lane: The lane, whose thread may look after it.
        what: The operation, for messages.
        whose: The process group, for messages.
        seconds: How long it may take.
        request: The request of MPI.
        then: Called when the message has arrived.
        tensors: The tensor.
    """

    def __init__(
        self,
        lane: Lane,
        what: str,
        whose: str,
        seconds: float,
        request: MPI.Request,
        then: Callable[[], None],
        tensors: Sequence[torch.Tensor],
    ) -> None:
        super().__init__(tensors)
        self._lane = lane
        self._what, self._whose, self._seconds = what, whose, seconds
        self._request = request
        self._then = then
        self._status = MPI.Status()
        self._polling = threading.RLock()

    def poll(self) -> bool:
        """Return whether the message has ended."""
        if self._ended:
            return True
        with self._polling:
            if self._ended:
                return True
            try:
                if not self._request.Test(self._status):
                    return False
                self._then()
            except Exception as error:
                self.finish(error)
                return True
        self.finish(None)
        return True

    def get_future(self) -> torch.futures.Future[Any]:
        """Return a future of the tensor, which the thread of the lane completes."""
        future = super().get_future()
        if not self._ended:
            self._lane.watch(self)
        return future

    def is_completed(self) -> bool:
        """Return whether the message has ended."""
        return self.poll()

    def wait(self, timeout: timedelta = _UNSET) -> bool:
        """Wait for the end of the message.

        Raises:
            DistBackendError: It has not ended within ``timeout``, or the time-out of the group.
        """
        seconds = timeout.total_seconds() if timeout > _UNSET else self._seconds
        if not wait_until(self.poll, seconds):
            self._give_up(timed_out(self._what, self._whose, seconds))
        if self._error is not None:
            raise self._error
        return True

    def _give_up(self, error: Exception) -> None:
        with self._polling:
            if self._ended:
                return
            self._request.Cancel()  # of a receive; a send may still need its buffer
            if not wait_until(self._request.Test, _CANCELLING):
                abandon(self._request, self._then, self._tensors)
        self.finish(error)

    def source_rank(self) -> int:
        """Return the rank in the group that sent the message."""
        return self._status.Get_source()

    _source_rank = source_rank


class Together(_Work):
    """Several operations as one."""

    def __init__(self, works: Sequence[dist.Work]) -> None:
        super().__init__([tensor for work in works for tensor in work.result()])
        self._works = works

    def get_future(self) -> torch.futures.Future[Any]:
        """Return a future of all tensors."""
        parts = [work.get_future() for work in self._works]
        return torch.futures.collect_all(parts).then(lambda done: [t for part in done.value() for t in part.value()])

    def is_completed(self) -> bool:
        """Return whether all have ended."""
        return all(work.is_completed() for work in self._works)

    def exception(self) -> BaseException | None:
        """Return the first error."""
        return next((error for work in self._works if (error := work.exception()) is not None), None)

    def is_success(self) -> bool:
        """Return whether all have ended without an error."""
        return self.is_completed() and self.exception() is None

    def wait(self, timeout: timedelta = _UNSET) -> bool:
        """Wait for all."""
        for work in self._works:
            work.wait(timeout)
        return True
