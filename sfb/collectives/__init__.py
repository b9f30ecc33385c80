"""Exact algorithms: each a module that prices itself, prepares and runs one exchange of factors.

A module of this package defines

- ``cost(problem) -> Cost``: what the busiest rank spends;
- ``wire_bytes(problem, team) -> int``: bytes that this rank receives from other ranks, through memory or network;
- ``prepare(problem, team) -> None``: allocate buffers; collective, may raise MemoryError on any rank;
- ``run(problem, team, factors, receiver) -> Timing``: exchange the factors and update the receiver; collective.

Adding an algorithm is adding a module and its name below.
"""

from __future__ import annotations

from types import ModuleType

from sfb.collectives import broadcast, dense, node
from sfb.collectives.problem import Problem, Timing

__all__ = ["ALGORITHMS", "Problem", "Timing"]

# In the order in which ties are decided.
ALGORITHMS: dict[str, ModuleType] = {"node": node, "broadcast": broadcast, "dense": dense}
