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
from sfb.factors import Factors
from sfb.receiver import Receiver
from sfb.tuning.plan import AUTO, Candidate, Plan, choose
from sfb.tuning.profile import Profile

if TYPE_CHECKING:
    from sfb.runtime.team import Team  # needs MPI, which estimates do without

__all__ = ["ALGORITHMS", "Algorithm", "check_algorithm", "what_if"]


class Algorithm(Candidate[Problem], Protocol):
    """A module that estimates, prepares and runs an exchange of factors.

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


def check_algorithm(name: object) -> None:
    """Raise ValueError unless ``name`` is an algorithm or "auto"."""
    if name != AUTO and name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join([AUTO, *ALGORITHMS])}, got {name!r}")


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
    profile: Profile | None = None,
) -> Plan[Problem]:
    """Return the plan for an exchange of ``samples`` samples on each of ``ranks`` ranks; needs no MPI.

    >>> from sfb.collectives import what_if
    >>> what_if(rows=4096, columns=4096, samples=1, ranks=4, nodes=4, memory="private").algorithm
    'broadcast'

    Args:
        rows: K.
        columns: D.
        samples: S.
        ranks: P.
        nodes: The number of nodes that the ranks fill.
        dtype: The dtype of factors and sum.
        receiver: "array", "sgd" or "momentum".
        memory: "shared" or "private".
        profile: The profile of the machine; stated rates by default.
    """
    problem = Problem(
        shape=(rows, columns),
        dtype=np.dtype(dtype),
        counts=np.full(ranks, samples, np.int64),
        node_of=fill_nodes(ranks, nodes),
        passes={"array": 1, "sgd": 2, "momentum": 4}[receiver],
        shared=memory == "shared",
        assigns=receiver == "array",
    )
    return choose(problem, ALGORITHMS, AUTO, profile)
