"""Threads: how many cores a rank may use, and BLAS held to that."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mpi4py import MPI
from threadpoolctl import ThreadpoolController

__all__ = ["BlasLimit", "affinity", "cores", "limit_process"]


def affinity() -> set[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def cores(node: MPI.Intracomm) -> int:
    """Return the cores that the ranks of ``node`` may run on, all together; collective."""
    return len(set().union(*node.allgather(affinity())))


class BlasLimit:
    """Holds the BLAS libraries that this process has loaded so far to a number of threads."""

    def __init__(self) -> None:
        self._blas = ThreadpoolController().select(user_api="blas")
        self._threads = [library.get_num_threads for library in self._blas.lib_controllers]

    def __call__(self, threads: int) -> AbstractContextManager[Any]:
        """Return a context with the limit in force; it costs next to nothing where it already holds."""
        for current in self._threads:
            if current() > threads:
                return self._blas.limit(limits=threads)
        return _NO_LIMIT


_NO_LIMIT: AbstractContextManager[Any] = nullcontext()


def limit_process(comm: MPI.Intracomm) -> int:
    """Hold this process's BLAS to its share of the node's cores, or to fewer threads that it has, for good; collective.

    For commands, which own their process; a library leaves the user's setting alone.

    Returns:
        The threads that a rank may use.
    """
    import scipy.linalg.cython_blas  # noqa: F401 - so that the BLAS of SciPy is found

    node = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
    threads = max(1, cores(node) // node.size)
    node.Free()
    for library in ThreadpoolController().lib_controllers:
        if library.num_threads > threads:
            library.set_num_threads(threads)
    return threads
