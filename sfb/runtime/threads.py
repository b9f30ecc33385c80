"""Threads: the share of the cores that a rank may use, and a limit for BLAS."""

from __future__ import annotations

import os

from mpi4py import MPI
from threadpoolctl import ThreadpoolController

from sfb.runtime.ulfm import private

__all__ = ["affinity", "cores", "limit_process", "same_host", "threads_of"]


def affinity() -> set[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def same_host(comm: MPI.Intracomm) -> MPI.Intracomm:
    """Return a communicator of the ranks on this rank's host, whether or not they can share memory; collective."""
    name = MPI.Get_processor_name()
    return private(MPI.Intracomm(MPI.Intracomm(comm).Split(comm.allgather(name).index(name), comm.rank)))


def cores(host: MPI.Intracomm) -> int:
    """Return the number of cores on which the ranks of ``host`` may run, all together; collective."""
    return len(set().union(*host.allgather(affinity())))


def threads_of(host: MPI.Intracomm, available: int) -> int:
    """Return the threads of a rank: its share of the ``available`` cores of ``host``.

    NUMBA_NUM_THREADS, or else OMP_NUM_THREADS, sets a smaller number.
    """
    share = max(1, available // host.size)
    wanted = os.environ.get("NUMBA_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(share, int(wanted)) if wanted.strip().isdecimal() and int(wanted) else share


def limit_process(comm: MPI.Intracomm) -> int:
    """Limit the threads of this process's BLAS to its share of the host's cores; collective.

    The limit stays. Commands call this, as they own their process; a library leaves the user's setting alone.

    Returns:
        The threads that a rank may use.
    """
    host = same_host(comm)
    threads = threads_of(host, cores(host))
    host.Free()
    for library in ThreadpoolController().lib_controllers:
        if library.num_threads > threads:
            library.set_num_threads(threads)
    return threads
