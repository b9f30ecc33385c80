"""Exact algorithms: each a module that prices itself, prepares and runs one exchange of factors.

A module of this package defines

- ``suits(problem) -> bool``: whether "auto" may take it;
- ``cost(problem) -> list[Use]``: what the busiest rank does;
- ``wire_bytes(problem, rank) -> int``: bytes that the rank receives from other ranks, through memory or network;
- ``prepare(problem, team) -> None``: allocate buffers; collective, may raise MemoryError on any rank;
- ``run(problem, call, factors, receiver) -> Iterator``: exchange the factors and update the receiver, a generator
  of things to wait for (`sfb.collectives.call`); collective;

if a part of its exchange goes on beside the rebuild,

- ``hides(problem) -> float``: that part, at most;

if its exchanges within a node can be fused (`sfb.collectives.fused`),

- ``staging_bytes(problem) -> int``: bytes of memory that the node shares for it;
- ``bind(problem, team, block)``: what its kernel takes as bound;

and if its exchanges between nodes can be eager (`sfb.collectives.eager`),

- ``payload(problem) -> tuple | None``: what a rank sends beside its header, and its bytes.

Adding an algorithm is adding a module and its name below.
"""

from __future__ import annotations

from types import ModuleType

from sfb.collectives import broadcast, dense, node, pipelined, sharded
from sfb.collectives.problem import Problem, spread

__all__ = ["ALGORITHMS", "Problem", "spread"]

# In the order in which ties are decided.
ALGORITHMS: dict[str, ModuleType] = {
    "node": node,
    "broadcast": broadcast,
    "pipelined": pipelined,
    "dense": dense,
    "sharded": sharded,
}
