"""Graphs by the names that users give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sfb.topology import families
from sfb.topology.graph import Topology
from sfb.topology.halton import halton, halton_malt2, halton_published

__all__ = ["NAMES", "create"]

NAMES: dict[str, Callable[[int], Topology]] = {
    "halton": halton,
    "halton_published": halton_published,
    "halton_malt2": halton_malt2,
    "exponential": families.exponential,
    "chord": families.chord,
    "ring": families.ring,
    "hypercube": families.hypercube,
    "torus": families.torus,
    "complete": families.complete,
    "random_regular": families.random_regular,
}


def create(topology: Any, size: int) -> Topology:
    """Return the connected graph of ``size`` ranks that ``topology`` names or is.

    Args:
        topology: A key of `NAMES`, a `Topology`, or a networkx graph.
        size: Number of ranks.

    Raises:
        TypeError: ``topology`` is none of these.
        ValueError: The name is unknown, or the graph has another number of ranks or is disconnected.

    >>> import sfb
    >>> sfb.topology.create("torus", 6)
    <torus, 6 ranks, degree 3>
    """
    if isinstance(topology, str):
        if topology not in NAMES:
            raise ValueError(f"topology must be one of {', '.join(NAMES)}, got {topology!r}")
        return NAMES[topology](size)
    if not isinstance(topology, Topology):
        topology = families.from_networkx(topology)
    if topology.size != size:
        raise ValueError(f"the topology has {topology.size} ranks, the communicator {size}")
    _ = topology.diameter
    return topology
