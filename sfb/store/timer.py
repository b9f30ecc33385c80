"""The clock of a rank that waits, and what it does between two looks."""

from __future__ import annotations

from collections.abc import Callable
from os import sched_yield
from time import monotonic
from typing import NamedTuple

__all__ = ["Timer"]


class Timer(NamedTuple):
    """A clock and a pause; tests pass their own to decide what time it is.

    Attributes:
        now: Returns the seconds of a clock that only advances.
        pause: Lets other processes run.
    """

    now: Callable[[], float] = monotonic
    pause: Callable[[], None] = sched_yield
