"""Plans: an algorithm chosen for one exchange, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from sfb.tuning.profile import EXCHANGES, Place, Profile, Use
from sfb.tuning.trial import Trial

__all__ = ["AUTO", "Candidate", "Estimate", "Plan", "Priced", "choose"]

AUTO = "auto"

# A trial times the algorithms whose estimates are within this factor of the best: by measured rates, by stated ones.
_DOUBT, _DEEP_DOUBT = 2.5, 4.0
# A trial times this many of them, and any others within this factor of the best.
_CONTENDERS, _CLOSE = 3, 1.6
# Seconds of calls that a trial times of each.
_TRIAL_SECONDS = 0.1
# Times within these factors are equal: inside a node, between nodes.
_TIE, _FAR_TIE = 1.05, 1.02


class Priced(Protocol):
    """An exchange that algorithms can price."""

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D)."""

    @property
    def dtype(self) -> Any:
        """Of factors and receiver."""

    @property
    def depth(self) -> int:
        """Samples of all ranks together."""

    @property
    def ranks(self) -> int:
        """P."""

    @property
    def place(self) -> Place:
        """How the ranks lie on nodes and cores."""

    @property
    def shared(self) -> bool:
        """Whether the receiver has one copy per node, rather than one per rank."""


_P = TypeVar("_P", bound=Priced)
_P_in = TypeVar("_P_in", bound=Priced, contravariant=True)


class Candidate(Protocol[_P_in]):
    """What the choice asks of an algorithm.

    A candidate may define ``hides(problem) -> float``, too: the part of its exchange that at most goes on beside the
    rebuild; and ``calls(problem) -> int``: the number of blocks in which it goes, each of which takes the overhead.
    """

    def suits(self, problem: _P_in, /) -> bool:
        """Return whether "auto" may take it."""

    def cost(self, problem: _P_in, /) -> Sequence[Use]:
        """Return what the busiest rank does."""

    def wire_bytes(self, problem: _P_in, rank: int = 0, /) -> int:
        """Return the bytes that a rank receives from other ranks, through memory or network."""


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds of one algorithm for one exchange, and the bytes that the busiest rank receives.

    The part of the exchange that goes on beside the rebuild counts as rebuild.
    """

    algorithm: str
    exchange: float
    rebuild: float
    wire_bytes: int

    @property
    def total(self) -> float:
        """Seconds of the whole call."""
        return self.exchange + self.rebuild


@dataclass
class Plan(Generic[_P]):
    """The algorithm taken for an exchange, with the estimates it was taken by.

    Attributes:
        algorithm: Its name; the cheapest estimate's, until a trial ends otherwise.
        problem: The exchange.
        estimates: One of each algorithm that can be taken, the cheapest first.
        forced: Whether the user named the algorithm.
        profile: What the estimates rest on.
        trial: The contenders, while calls are timed to decide among them.
        measured: Seconds of a call, by algorithm that the trial timed.
    """

    algorithm: str
    problem: _P
    estimates: Sequence[Estimate]
    forced: bool
    profile: Profile
    trial: Trial | None = None
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Estimated seconds of the algorithm taken."""
        return next(estimate.total for estimate in self.estimates if estimate.algorithm == self.algorithm)

    def end_round(self, most: np.ndarray) -> None:
        """End a round of the trial (`Trial.end_round`), and the trial if that was the last."""
        if self.trial is None:
            return
        self.trial.end_round(most)
        if self.trial.over:
            self.algorithm = self._winner(self.trial)
            self.measured = self.trial.measured
            self.trial = None

    def _winner(self, trial: Trial) -> str:
        """Return the fastest; of several within a tie, as times vary, the one with the cheapest estimate.

        Between nodes a tie goes to the one that receives least, as jobs share networks.
        """
        far = self.problem.place.nodes > 1
        limit = (_FAR_TIE if far else _TIE) * trial.measured[trial.best]
        ties = [e for e in self.estimates if e.algorithm in trial.algorithms and trial.measured[e.algorithm] <= limit]
        if far:
            return min(ties, key=lambda e: (e.wire_bytes, trial.measured[e.algorithm])).algorithm
        return min(ties, key=lambda e: e.total).algorithm

    def explain(self) -> str:
        """Return a table of the estimates, of times measured so far, and the reason for the choice."""
        p = self.problem
        rows, columns = p.shape
        if self.profile.measured:
            source = f"times measured on {self.profile.place.ranks} ranks, {self.profile.place.nodes} nodes"
        else:
            source = "stated rates, not measured (sfb tune measures them)"
        lines = [
            f"K={rows} D={columns} {p.dtype}, {self._samples}{self._filled} of {p.place.ranks} ranks on "
            f"{p.place.nodes} node{'s' if p.place.nodes > 1 else ''}, "
            f"receiver {'shared by a node' if p.shared else 'per rank'}",
            f"estimates by {source}",
            f"{'algorithm':<10} {'exchange ms':>12} {'rebuild ms':>12} {'total ms':>12} {'received B':>12} "
            f"{'measured ms':>12}",
        ]
        for e in self.estimates:
            seconds = self.measured.get(e.algorithm)
            lines.append(
                f"{e.algorithm:<10} {e.exchange * 1e3:12.3f} {e.rebuild * 1e3:12.3f} {e.total * 1e3:12.3f} "
                f"{e.wire_bytes:12d} {'' if seconds is None else f'{seconds * 1e3:.3f}':>12}".rstrip()
            )
        lines.append(f"taken: {self.algorithm}, {self._reason}")
        return "\n".join(lines)

    @property
    def _samples(self) -> str:
        """Words on the samples of all ranks: at most so many where the plan serves calls with unlike S."""
        uniform = getattr(self.problem, "uniform", True)
        return f"{'' if uniform else 'up to '}{self.problem.depth} samples"

    @property
    def _filled(self) -> str:
        """Words on v where it is CSR."""
        nonzeros = getattr(self.problem, "nonzeros", None)
        return "" if nonzeros is None else f" with {int(nonzeros.sum())} non-zeros in CSR v"

    @property
    def _reason(self) -> str:
        if self.forced:
            return "named by the caller"
        if self.trial is not None:
            return f"the cheapest estimate; the first calls time it against {', '.join(self.trial.algorithms[1:])}"
        return "the fastest of those timed in the first calls" if self.measured else "the cheapest estimate"


def choose(
    problem: _P,
    algorithms: Mapping[str, Candidate[_P]],
    algorithm: str = AUTO,
    profile: Profile | None = None,
    *,
    trials: bool = False,
) -> Plan[_P]:
    """Return the plan for ``problem``: the algorithm named, or the cheapest by the cost model.

    Ranks that pass the same problem and profile get the same plan.

    Args:
        problem: The exchange.
        algorithms: All algorithms by name, in the order that decides ties.
        algorithm: One of their names, or "auto".
        profile: What the machine can do; stated rates by default.
        trials: Let the first calls time the best algorithms where their estimates are close.
    """
    profile = profile or Profile()
    estimates = [
        _estimate(name, module, problem, profile)
        for name, module in algorithms.items()
        if name == algorithm or module.suits(problem)
    ]
    estimates.sort(key=lambda estimate: estimate.total)
    if algorithm != AUTO:
        return Plan(algorithm, problem, tuple(estimates), True, profile)
    plan = Plan(estimates[0].algorithm, problem, tuple(estimates), False, profile)
    limit = estimates[0].total * (_DOUBT if profile.measured else _DEEP_DOUBT)
    close = sum(e.total <= _CLOSE * estimates[0].total for e in estimates)
    contenders = [e.algorithm for e in estimates[: max(_CONTENDERS, close)] if e.total <= limit]
    if trials and problem.ranks > 1 and len(contenders) > 1:
        plan.trial = Trial(contenders, _TRIAL_SECONDS, far=problem.place.nodes > 1)
    return plan


def _estimate(name: str, algorithm: Candidate[_P], problem: _P, profile: Profile) -> Estimate:
    """Price one algorithm."""
    seconds = [(use.kind in EXCHANGES, profile.seconds(use, problem.place)) for use in algorithm.cost(problem)]
    rebuild = sum(s for exchange, s in seconds if not exchange)
    calls = getattr(algorithm, "calls", None)
    overhead = profile.overhead(name) * (1 if calls is None else calls(problem))
    exchanged = overhead + sum(s for exchange, s in seconds if exchange)
    hides = getattr(algorithm, "hides", None)
    if hides is not None:
        exchanged -= min(hides(problem) * exchanged, rebuild)
    return Estimate(name, exchanged, rebuild, algorithm.wire_bytes(problem))
