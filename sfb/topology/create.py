"""How a user names a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sfb.topology.families import (
    chord,
    complete,
    exponential,
    from_networkx,
    hypercube,
    random_regular,
    ring,
    torus,
)
from sfb.topology.graph import Topology
from sfb.topology.halton import halton, halton_malt2, halton_published

__all__ = ["NAMES", "create"]

NAMES: dict[str, Callable[[int], Topology]] = {
    "halton": halton,
    "halton_published": halton_published,
    "halton_malt2": halton_malt2,
    "exponential": exponential,
    "chord": chord,
    "ring": ring,
    "hypercube": hypercube,
    "torus": torus,
    "complete": complete,
    "random_regular": random_regular,
}


def create(topology: Any, size: int) -> Topology:
    """Return what a user's ``topology`` stands for on ``size`` ranks: a name, a `Topology`, or a networkx graph.

    Raises:
        TypeError: Neither.
        ValueError: An unknown name, another number of ranks, or a disconnected graph.
    """
    if isinstance(topology, str):
        if topology not in NAMES:
            raise ValueError(f"topology must be one of {', '.join(NAMES)}, got {topology!r}")
        return NAMES[topology](size)
    if not isinstance(topology, Topology):
        topology = from_networkx(topology)
    if topology.size != size:
        raise ValueError(f"the topology has {topology.size} ranks, the communicator {size}")
    _ = topology.diameter
    return topology
