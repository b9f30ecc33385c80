"""Directed graphs over ranks: who sends to whom, how well that mixes, and the trees along which updates travel."""

from sfb.topology.create import NAMES, create
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

__all__ = [
    "NAMES",
    "Topology",
    "chord",
    "complete",
    "create",
    "exponential",
    "from_networkx",
    "halton",
    "halton_malt2",
    "halton_published",
    "hypercube",
    "random_regular",
    "ring",
    "torus",
]
