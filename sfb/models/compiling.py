"""Kernels of models, which one rank of a node compiles for all."""

from __future__ import annotations

from sfb.kernels.stages import compiled
from sfb.models.ranks import Ranks

__all__ = ["load"]


def load(ranks: Ranks, module: str, call: str = "fit") -> None:
    """Compile a module of kernels on one rank of each node, and load it on the others; collective.

    Args:
        ranks: The ranks.
        module: A module of `sfb.kernels`.
        call: The user's call, for messages.

    Raises:
        KernelError: Numba is missing, or cannot compile on a rank; on every rank.
    """
    if ranks.comm is None:
        compiled(module)
        return
    from mpi4py import MPI

    from sfb.runtime.compile import load as load_on_node

    node = MPI.Intracomm(MPI.Intracomm(ranks.comm).Split_type(MPI.COMM_TYPE_SHARED))
    with ranks.together(call):
        load_on_node(node, ((module,),))
    node.Free()
