"""Compilation of the kernels, once per node, before anything is timed."""

from __future__ import annotations

from mpi4py import MPI

import sfb.kernels as kernels

__all__ = ["warmup"]


def warmup(node: MPI.Intracomm) -> None:
    """Compile the kernels on rank 0 of ``node`` and load them from Numba's cache on the others; collective.

    Raises:
        Exception: Whatever kept this rank from it; only after the collective part.
    """
    try:
        if node.rank == 0:
            kernels.warmup()
    finally:
        node.Barrier()
    kernels.warmup()
