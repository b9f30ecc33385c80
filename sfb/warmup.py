"""Compilation of the kernels, once per node, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

import sfb.kernels as kernels

__all__ = ["once_per_node", "warmup"]


def warmup(node: MPI.Intracomm) -> None:
    """Compile all kernels on rank 0 of ``node`` and load them from Numba's cache on the others; collective.

    Raises:
        Exception: Whatever kept this rank from it; only after the collective part.
    """
    once_per_node(node, kernels.warmup)


def once_per_node(node: MPI.Intracomm, load: Callable[[], None]) -> None:
    """Call ``load``, which fills a cache, on rank 0 of ``node`` first; collective, and raises as `warmup` does."""
    try:
        if node.rank == 0:
            load()
    finally:
        node.Barrier()
    load()
