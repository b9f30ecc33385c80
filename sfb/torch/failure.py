"""The end of a job of which one rank fails."""

from __future__ import annotations

import atexit
import sys
from types import TracebackType

from mpi4py import MPI

__all__ = ["end_job_on_error"]

_watching = False


def end_job_on_error() -> None:
    """Let an uncaught exception of this rank end the job, when its process ends; others may wait for it for ever."""
    global _watching
    if _watching:
        return
    _watching = True
    before = sys.excepthook

    def after(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        atexit.register(_abort, kind.__name__)

    sys.excepthook = after


def _abort(name: str) -> None:
    world = MPI.COMM_WORLD
    if world.size == 1 or MPI.Is_finalized():
        return
    sys.stdout.flush()
    print(f"sfb: rank {world.rank} failed with {name}; ending all ranks", file=sys.stderr, flush=True)
    world.Abort(1)
