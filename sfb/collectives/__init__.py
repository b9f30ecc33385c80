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

and, if what its ranks send may go with the headers of the agreement (`Problem.carried`), here and in `PARCELS`,

- ``parcel(problem, factors, agree, threads) -> tuple | None``: write what this rank sends into the agreement's
  ``room``, and return its bytes and None; ``run`` finds those of all ranks in ``call.parcels``, or None there. Or write
  values to be added up into its ``summed``, and return how many bytes of a rank would cost as much, and the values. Or
  return None if nothing is sent.

Adding an algorithm is adding a module and its name below.
"""

from __future__ import annotations

from types import ModuleType

from sfb.collectives import broadcast, dense, node, pipelined, sharded
from sfb.collectives.problem import Problem, spread

__all__ = ["ALGORITHMS", "PARCELS", "Problem", "spread"]

# In the order in which ties are decided.
ALGORITHMS: dict[str, ModuleType] = {
    "node": node,
    "broadcast": broadcast,
    "pipelined": pipelined,
    "dense": dense,
    "sharded": sharded,
}

# Those that have a ``parcel``, and the number by which ranks know it.
PARCELS = {"broadcast": (1, broadcast.parcel), "dense": (2, dense.parcel)}
