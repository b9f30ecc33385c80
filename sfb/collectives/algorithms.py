"""The exact algorithms, by name, and the choice among them.

To add an algorithm, add a module with the functions of `Algorithm`, and its name to `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sfb.collectives import broadcast, dense, node, pipelined, sharded
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem, fill_nodes
from sfb.collectives.sparse import SparseBroadcast, SparseNode, room_for
from sfb.factors import Factors
from sfb.receiver import Receiver
from sfb.tuning.plan import AUTO, Candidate, Plan, choose
from sfb.tuning.profile import Profile

if TYPE_CHECKING:
    from sfb.runtime.team import Team  # needs MPI, which estimates do without

__all__ = ["ALGORITHMS", "SPARSE_ALGORITHMS", "Algorithm", "algorithms_for", "check_algorithm", "what_if"]


class Algorithm(Candidate[Problem], Protocol):
    """A module, or an object, that estimates, prepares and runs an exchange of factors.

    A module has ``staging_bytes(problem)`` and ``bind(problem, team, block)``, too, if its exchanges within a node can
    be fused (`sfb.collectives.fused`), and ``payload(problem)`` if its exchanges between nodes can be eager
    (`sfb.collectives.eager`).
    """

    def prepare(self, problem: Problem, team: Team, /) -> None:
        """Allocate buffers; collective. A rank may raise MemoryError."""

    def run(self, problem: Problem, call: Call, factors: Factors, receiver: Receiver, /) -> Iterator[Any]:
        """Exchange the factors and update the receiver, in steps (`sfb.runtime.steps`); collective."""


# The first of those with equal estimates is taken.
ALGORITHMS: dict[str, Algorithm] = {
    "node": node,
    "broadcast": broadcast,
    "pipelined": pipelined,
    "dense": dense,
    "sharded": sharded,
}
# Those that take CSR v. `dense` alone forms a dense product first.
SPARSE_ALGORITHMS: dict[str, Algorithm] = {"node": SparseNode(), "broadcast": SparseBroadcast(), "dense": dense}


def algorithms_for(problem: Problem) -> dict[str, Algorithm]:
    """Return the algorithms that take an exchange, by name."""
    return ALGORITHMS if problem.nonzeros is None else SPARSE_ALGORITHMS


def check_algorithm(name: object, *, sparse: bool = False) -> None:
    """Raise ValueError unless ``name`` is an algorithm or "auto", for CSR v if ``sparse``."""
    if name != AUTO and name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join([AUTO, *ALGORITHMS])}, got {name!r}")
    if sparse and name != AUTO and name not in SPARSE_ALGORITHMS:
        takers = ", ".join([AUTO, *SPARSE_ALGORITHMS])
        raise ValueError(f"algorithm {name!r} does not take CSR v: name one of {takers}, or pass v.toarray()")


def what_if(
    *,
    rows: int,
    columns: int,
    samples: int,
    ranks: int,
    nodes: int,
    dtype: str = "float32",
    receiver: str = "array",
    memory: str = "shared",
    filled: float | None = None,
    profile: Profile | None = None,
) -> Plan[Problem]:
    """Return the plan for an exchange of ``samples`` samples on each of ``ranks`` ranks; needs no MPI.

    >>> from sfb.collectives import what_if
    >>> what_if(rows=4096, columns=4096, samples=1, ranks=4, nodes=4, memory="private").algorithm
    'broadcast'
    >>> what_if(rows=50, columns=47000, samples=64, ranks=4, nodes=4, filled=0.002).estimates[0].wire_bytes
    184344

    Args:
        rows: K.
        columns: D.
        samples: S.
        ranks: P.
        nodes: The number of nodes that the ranks fill.
        dtype: The dtype of factors and sum.
        receiver: "array", "sgd" or "momentum".
        memory: "shared" or "private".
        filled: The part of v's elements that are not 0, if v is CSR; None for dense v.
        profile: The profile of the machine; stated rates by default.
    """
    nonzeros = None if filled is None else np.full(ranks, round(filled * samples * columns), np.int64)
    problem = Problem(
        shape=(rows, columns),
        dtype=np.dtype(dtype),
        counts=np.full(ranks, samples, np.int64),
        node_of=fill_nodes(ranks, nodes),
        passes={"array": 1, "sgd": 2, "momentum": 4}[receiver],
        shared=memory == "shared",
        assigns=receiver == "array",
        nonzeros=nonzeros,
        room=0 if nonzeros is None else room_for(int(nonzeros.sum())),
        skips_zeros=receiver == "sgd",
    )
    return choose(problem, algorithms_for(problem), AUTO, profile)
