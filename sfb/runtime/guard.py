"""The threads that look for failures beside the main thread, and how a process leaves its job after one."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any, Protocol
from weakref import WeakSet

from mpi4py import MPI

from sfb.runtime.ending import FAILED, end_job, end_soon
from sfb.trace.stack import stack_from

__all__ = ["PACKAGE", "PERIOD", "STUCK", "Watched", "at_work", "attend", "is_patient", "leave", "raised"]

# Seconds between two looks.
PERIOD = 1.0
# Seconds after which a main thread that stays where it is no longer runs, as in a call of MPI.
STUCK = 60.0
# Seconds for which a rank that ends waits for the others to end, too: one of them may write a checkpoint.
_LEAVE = 60.0
# Seconds that the threads have to end.
_JOIN = 5.0

# The folder of this library.
PACKAGE = os.path.dirname(os.path.dirname(__file__))


class Watched(Protocol):
    """What is known of failures among the ranks of a communicator (`sfb.runtime.failures.Failures`)."""

    @property
    def failure(self) -> Exception | None:
        """The failure, if there is one."""

    def listen(self, place: str, frames: Sequence[FrameType]) -> None:
        """Look for failures, and answer other ranks."""

    def watch(self, place: str, frames: Sequence[FrameType]) -> None:
        """End the job if the main thread does not hear of a failure."""

    def say_farewell(self) -> None:
        """Tell the other ranks that this one is about to end."""

    def wait_for_farewells(self, seconds: float) -> None:
        """Wait until the others are about to end."""


_all: WeakSet[Watched] = WeakSet()
_all_lock = threading.Lock()
_threads: list[threading.Thread] = []
_owner = 0  # the process that has the threads
_end = threading.Event()
_leaving: Watched | None = None  # whose failure the main thread knows of
_busy = 0  # blocks of `at_work` under way
_last: tuple[Any, float] = (None, 0.0)  # where the main thread was, and since when


def attend(failures: Watched) -> None:
    """Let the threads look at one more communicator."""
    global _owner
    with _all_lock:
        _all.add(failures)
    if _owner != os.getpid():
        _owner = os.getpid()
        _end.clear()
        _threads[:] = [
            threading.Thread(target=_run, args=(look,), name=f"sfb {name}", daemon=True)
            for name, look in (("listener", _listen), ("guard", _watch_over))
        ]
        for thread in _threads:
            thread.start()
        atexit.register(_at_exit)


def _run(look: Callable[[str, Sequence[FrameType]], None]) -> None:
    """Pass the place and the stack of the main thread to a function again and again."""
    while not _end.wait(PERIOD):
        frames = stack_from(sys._current_frames().get(threading.main_thread().ident or 0))
        look(_place(frames), frames)
        frames.clear()


def _listen(place: str, frames: Sequence[FrameType]) -> None:
    for failures in _every():
        failures.listen(place, frames)


def _watch_over(place: str, frames: Sequence[FrameType]) -> None:
    _look_at_main(place, frames)
    for failures in _every():
        failures.watch(place, frames)


def _every() -> list[Watched]:
    with _all_lock:
        return list(_all)


def _place(frames: Sequence[FrameType]) -> str:
    """Return where a stack is, in the program rather than in this library."""
    outside = [frame for frame in frames if not frame.f_code.co_filename.startswith(PACKAGE)]
    for frame in [*outside, *frames]:
        return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} ({frame.f_code.co_name})"
    return "its end"


def _look_at_main(place: str, frames: Sequence[FrameType]) -> None:
    """End the job if the main thread knows of a failure and has not moved for long."""
    global _last
    position = tuple((id(frame), frame.f_lasti) for frame in frames[:1])
    now = monotonic()
    if position != _last[0] or _leaving is None or _busy:
        _last = position, now
    elif now - _last[1] > STUCK:
        end_job(f"{_leaving.failure}; rank {MPI.COMM_WORLD.rank} stays at {place} after that")


def raised(failures: Watched) -> None:
    """Note that the main thread knows of a failure."""
    global _leaving
    if _leaving is None:
        _leaving = failures


def is_patient() -> bool:
    """Return whether the main thread knows of a failure, or is at work."""
    return _leaving is not None or _busy > 0


@contextmanager
def at_work() -> Iterator[None]:
    """Let the guard be patient inside a ``with`` statement, as while a rank writes what is to be saved.

    A rank that waits for another one inside would wait for ever for one that is gone.
    """
    global _busy
    _busy += 1
    try:
        yield
    finally:
        _busy -= 1


def _at_exit() -> None:
    if os.getpid() != _owner:  # of a fork
        return
    _end.set()
    for thread in _threads:
        thread.join(_JOIN)  # it may be in a call of MPI
    if _leaving is not None:
        leave(FAILED)


def leave(code: int) -> None:
    """End this process after a failure, as soon as all other ranks that are left are about to end, too.

    MPI's Finalize would wait for the ranks that have failed.

    Args:
        code: The exit code of the job.
    """
    for failures in _every():
        end_soon()
        failures.say_farewell()
    if _leaving is not None:
        _leaving.wait_for_farewells(_LEAVE)
    end_job("", code)
