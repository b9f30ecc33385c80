"""Compilation of the kernels, which the ranks of a node share."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter, sleep

from mpi4py import MPI

import sfb.kernels as kernels
from sfb.trace.spans import record

__all__ = ["load", "warmup"]

# Seconds after which a waiting rank assumes that others compile and may need its core, and seconds that it then sleeps
# between two looks.
_SOON, _PAUSE = 5e-3, 1e-3


def warmup(node: MPI.Intracomm, *, half: bool = False, sparse: bool = False) -> None:
    """Compile the kernels, or load them from Numba's cache; collective over the ranks of ``node``.

    Args:
        node: Ranks that share Numba's cache.
        half: Whether to load those for 16 bits on the wire, too.
        sparse: Whether to load those for sparse factors, too.

    Raises:
        Exception: This rank could not compile or load one; raised after the collective part.
    """
    load(node, kernels.STAGES + half * kernels.HALF_STAGES + sparse * kernels.SPARSE_STAGES)


def load(node: MPI.Intracomm, stages: Sequence[Sequence[str]]) -> None:
    """Load modules of kernels on all ranks of ``node``, each compiled by one of them; collective.

    Args:
        node: Ranks that share Numba's cache.
        stages: The names of the modules. The modules of a stage do not need each other.

    Raises:
        Exception: As `warmup` does.
    """
    error: Exception | None = None
    start = perf_counter()
    for stage in stages:
        try:
            for module in stage[node.rank :: node.size]:
                kernels.load(module)
        except Exception as caught:  # the other ranks wait in the barrier
            error = error or caught
        arrived, began = node.Ibarrier(), perf_counter()
        while not arrived.Test():
            sleep(0 if perf_counter() - began < _SOON else _PAUSE)
    if error is not None:
        raise error
    for stage in stages:
        for module in stage:
            kernels.load(module)
    record("kernels", "compile", start, perf_counter())
