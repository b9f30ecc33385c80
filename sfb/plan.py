"""Plans: an algorithm chosen for one exchange, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfb.collectives import ALGORITHMS, Problem
from sfb.profile import DEFAULT, Profile

__all__ = ["AUTO", "Estimate", "Plan", "check_algorithm", "choose"]

AUTO = "auto"


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds of one algorithm for one exchange."""

    algorithm: str
    exchange: float
    rebuild: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.exchange + self.rebuild


@dataclass(frozen=True)
class Plan:
    """The algorithm taken for a problem, with the estimates it was taken by.

    Attributes:
        algorithm: Its name.
        estimates: One of each algorithm, the cheapest first.
        forced: Whether the user named the algorithm.
    """

    algorithm: str
    problem: Problem
    estimates: Sequence[Estimate]
    forced: bool

    def explain(self) -> str:
        """Return a table of the estimates and the reason for the choice."""
        rows, columns = self.problem.shape
        lines = [
            f"K={rows} D={columns} {self.problem.dtype}, {self.problem.depth} samples of {self.problem.ranks} ranks "
            f"on {self.problem.nodes} nodes, receiver {'shared by a node' if self.problem.shared else 'per rank'}",
            f"{'algorithm':<10} {'exchange ms':>12} {'rebuild ms':>12} {'total ms':>12}",
        ]
        lines += [
            f"{e.algorithm:<10} {e.exchange * 1e3:12.3f} {e.rebuild * 1e3:12.3f} {e.total * 1e3:12.3f}"
            for e in self.estimates
        ]
        reason = "named by the caller" if self.forced else "the cheapest estimate"
        lines.append(f"taken: {self.algorithm}, {reason}")
        return "\n".join(lines)


def check_algorithm(name: object) -> None:
    """Raise ValueError unless ``name`` is an algorithm or "auto"."""
    if name != AUTO and name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join([AUTO, *ALGORITHMS])}, got {name!r}")


def choose(problem: Problem, algorithm: str = AUTO, profile: Profile = DEFAULT) -> Plan:
    """Return the plan for ``problem``: the algorithm named, or the cheapest by the cost model.

    The same on every rank, as problem and profile are.
    """
    estimates = []
    for name, module in ALGORITHMS.items():
        cost = module.cost(problem)
        estimates.append(
            Estimate(
                name,
                profile.exchange_seconds(cost, problem.sharing),
                profile.rebuild_seconds(cost, problem.sharing),
            )
        )
    estimates.sort(key=lambda estimate: estimate.total)
    forced = algorithm != AUTO
    return Plan(algorithm if forced else estimates[0].algorithm, problem, tuple(estimates), forced)
