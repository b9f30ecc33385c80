"""Threads: the share of the cores that a rank may use, and a limit for BLAS."""

from __future__ import annotations

import os

from mpi4py import MPI
from threadpoolctl import ThreadpoolController

__all__ = ["affinity", "cores", "limit_process", "threads_of"]


def affinity() -> set[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def cores(node: MPI.Intracomm) -> int:
    """Return the number of cores on which the ranks of ``node`` may run, all together; collective."""
    return len(set().union(*node.allgather(affinity())))


def threads_of(node: MPI.Intracomm, available: int) -> int:
    """Return the threads of a rank: its share of the ``available`` cores of ``node``.

    NUMBA_NUM_THREADS, or else OMP_NUM_THREADS, sets a smaller number.
    """
    share = max(1, available // node.size)
    wanted = os.environ.get("NUMBA_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(share, int(wanted)) if wanted.strip().isdecimal() and int(wanted) else share


def limit_process(comm: MPI.Intracomm) -> int:
    """Limit the threads of this process's BLAS to its share of the node's cores; collective.

    The limit stays. Commands call this, as they own their process; a library leaves the user's setting alone.

    Returns:
        The threads that a rank may use.
    """
    node = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
    threads = threads_of(node, cores(node))
    node.Free()
    for library in ThreadpoolController().lib_controllers:
        if library.num_threads > threads:
            library.set_num_threads(threads)
    return threads
