"""How a process ends with all ranks of its job, whatever MPI does."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from contextlib import suppress
from time import sleep

from mpi4py import MPI

__all__ = ["FAILED", "end_job", "end_soon"]

# The exit code of a process whose job has lost a rank.
FAILED = 76

# Seconds that MPI has to end the job; and after that, this process to end by itself.
_ABORT, _LAST = 5.0, 2.0


def end_soon() -> None:
    """Let this process end soon, unless this is called again: no call of MPI has to return for that.

    No thread of Python could do so: mpi4py's Abort keeps all of them from running.
    """
    with suppress(OSError, RuntimeError, ValueError):
        faulthandler.dump_traceback_later(_ABORT + _LAST, exit=True, file=2)


def end_job(text: str, code: int = FAILED) -> None:
    """End all ranks, and this process if MPI does not."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        if text:
            print(f"sfb: error: {text}; ending all ranks", file=sys.stderr)
        sys.stderr.flush()
    last = threading.Timer(_ABORT, os._exit, [code])
    last.daemon = True
    with suppress(RuntimeError):  # the interpreter is about to end, and starts no thread any more
        last.start()
    end_soon()
    sleep(0.2)  # for the launcher to pass on what has been written
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(code)
    os._exit(code)
