"""Reasons to stop a run before its end: signals, and limits of time."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from time import monotonic, time
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from sfb.launch import first_interrupt_is_handled

__all__ = ["REASONS", "Watch", "requeued"]

# Why a run stops: what the elements of `Watch.flags` stand for.
REASONS = ("a signal", "the limit of time")
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Seconds before the scheduler ends the job at which a run stops, beside twice the time that a checkpoint takes.
_SPARE = 60.0


class Watch:
    """Watches for signals and the clock; a context manager.

    Args:
        limit: Seconds after which to stop, from now; None for no limit.
        signals: Whether SIGTERM, SIGUSR1 and Ctrl-C, and the end of the job that Slurm states in SLURM_JOB_END_TIME,
            are reasons to stop, because a checkpoint can be written.

    Attributes:
        writing: The longest time that a checkpoint has taken so far.
    """

    def __init__(self, limit: float | None = None, *, signals: bool = False) -> None:
        self._end = None if limit is None else monotonic() + limit
        self._signals = signals
        self._signalled = False
        self._stack = ExitStack()
        self.writing = 0.0
        self._job_end: float | None = None
        if signals:
            with suppress(ValueError):
                self._job_end = float(os.environ.get("SLURM_JOB_END_TIME", ""))

    def __enter__(self) -> Watch:
        if self._signals:
            for number in _SIGNALS:
                with suppress(ValueError):  # not in the main thread, which alone may
                    self._stack.callback(signal.signal, number, signal.signal(number, self._note))
            self._stack.enter_context(first_interrupt_is_handled())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _note(self, number: int, frame: FrameType | None) -> Any:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt  # whoever repeats it does not want to wait
        self._signalled = True

    def flags(self) -> np.ndarray:
        """Return 1 for each of `REASONS` for which this process would stop now, else 0; float64."""
        late = self._end is not None and monotonic() >= self._end
        if self._job_end is not None:
            late = late or time() >= self._job_end - _SPARE - 2 * self.writing
        return np.array([self._signalled, late], np.float64)


def requeued() -> bool:
    """Return whether Slurm has started this job again, after it was requeued or a node failed."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return count.isdigit() and int(count) > 0
