"""Compilation of the kernels, shared among the ranks of a node, before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter, sleep

from mpi4py import MPI

import sfb.kernels as kernels

__all__ = ["load", "warmup"]

# A rank that has waited so many seconds for others assumes that they compile, and pauses between looks, since it must
# not take their cores.
_SOON, _PAUSE = 5e-3, 1e-3


def warmup(node: MPI.Intracomm) -> None:
    """Compile all kernels, or load them from Numba's cache; collective over the ranks of ``node``.

    Raises:
        Exception: Whatever kept this rank from it; only after the collective part.
    """
    load(node, kernels.STAGES)


def load(node: MPI.Intracomm, stages: Sequence[Sequence[str]]) -> None:
    """Load modules of kernels on all ranks of ``node``, each compiled by one of them; collective.

    Args:
        node: Ranks that share Numba's cache.
        stages: Names of modules; those of a stage do not need each other.

    Raises:
        Exception: Whatever kept this rank from it; only after the collective part.
    """
    error: Exception | None = None
    for stage in stages:
        try:
            for module in stage[node.rank :: node.size]:
                kernels.load(module)
        except Exception as caught:  # whatever it is, the other ranks wait
            error = error or caught
        arrived, began = node.Ibarrier(), perf_counter()
        while not arrived.Test():
            sleep(0 if perf_counter() - began < _SOON else _PAUSE)
    if error is not None:
        raise error
    for stage in stages:
        for module in stage:
            kernels.load(module)
