"""Plans: an algorithm chosen for one exchange, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from sfb.collectives import ALGORITHMS, Problem, spread
from sfb.tuning.profile import EXCHANGES, Profile

__all__ = ["AUTO", "TIMED", "Estimate", "Plan", "Trial", "check_algorithm", "choose", "what_if"]

AUTO = "auto"

# Algorithms are timed where their estimates are within this factor of the best: of measured rates, of stated ones.
_DOUBT, _DEEP_DOUBT = 2.5, 4.0
# As many are timed, and any others within this factor of the best.
_CONTENDERS, _CLOSE = 3, 1.6
# Calls of each, of which the first does not count; more where all take less than so many seconds, up to so many calls.
TIMED, _BRIEF, _MOST = 8, 0.1, 64
# The factors by which one may be slower than the best and still be timed again: after one call that counts, after two.
_HOPELESS, _BEHIND = 4.0, 1.4
# The factors within which times are equal, inside a node and between nodes.
_TIE, _FAR_TIE = 1.05, 1.02


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds of one algorithm for one exchange, and the bytes that the busiest rank receives.

    What of the exchange goes on beside the rebuild counts as rebuild.
    """

    algorithm: str
    exchange: float
    rebuild: float
    wire_bytes: int

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.exchange + self.rebuild


class Trial:
    """Algorithms taken in turn by the first calls of a plan, until it is clear which is fastest.

    Every rank notes the same times, and so comes to the same end.

    Args:
        algorithms: The contenders, the one estimated best first.
        brief: Time each for so many seconds, with more calls than usual, as what is short varies more.
        far: Whether the ranks lie on several nodes.
    """

    def __init__(self, algorithms: Sequence[str], brief: float = 0.0, *, far: bool = False) -> None:
        self._far = far
        self._round: dict[str, tuple[float, float]] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in algorithms}
        self._left = list(algorithms)
        self._brief = brief

    @property
    def algorithms(self) -> list[str]:
        """The contenders that are left."""
        return list(self._left)

    @property
    def next(self) -> str:
        """The algorithm to be timed next. Every second round has the opposite order, so that neighbours change."""
        rounds = len(self.seconds[self._left[0]])
        order = self._left[::-1] if rounds % 2 else self._left
        return next(name for name in order if name not in self._round)

    def record(self, algorithm: str, worked: float, waited: float) -> bool:
        """Record the seconds of a call in which this rank worked, and waited for others.

        Returns:
            Whether the round is over; all ranks then take the maximum of their `times`, for `end_round`.
        """
        self._round[algorithm] = worked, waited
        return len(self._round) == len(self._left)

    def times(self) -> np.ndarray:
        """Return, of each algorithm of the round, seconds worked, seconds waited negated, and their sum."""
        recorded = (self._round[name] for name in self._left)
        return np.array([(worked, -waited, worked + waited) for worked, waited in recorded])

    def end_round(self, most: np.ndarray) -> None:
        """Note the round, of which ``most`` is the maximum of all ranks.

        Within a node a call takes as long as the slowest rank works, and the shortest wait: a rank that waits longer
        waits for another that is late. Between nodes data come while a rank waits, so both count, of the slowest.
        """
        for name, (worked, waited, both) in zip(list(self._left), most.tolist(), strict=True):
            self.add(name, both if self._far else worked - waited)
        self._round.clear()

    def add(self, algorithm: str, seconds: float) -> None:
        """Note the seconds of a call, and give up those that are far behind."""
        self.seconds[algorithm].append(seconds)
        fewest = min(len(self.seconds[name]) for name in self._left)
        if fewest > 1:
            # What is brief varies so much that two calls that count say little.
            sure = fewest > 2 and all(self._long(self.seconds[name]) for name in self._left)
            limit = (_BEHIND if sure or fewest >= _MOST // 2 else _HOPELESS) * self.measured[self.best]
            self._left = [name for name in self._left if self.measured[name] <= limit]

    @property
    def over(self) -> bool:
        """Whether one is left, or all have been timed often enough."""
        return len(self._left) == 1 or all(self._enough(self.seconds[name]) for name in self._left)

    def _enough(self, taken: Sequence[float]) -> bool:
        return len(taken) >= TIMED and (len(taken) >= _MOST or self._long(taken))

    def _long(self, taken: Sequence[float]) -> bool:
        return sum(taken) >= self._brief

    @property
    def measured(self) -> dict[str, float]:
        """The median of the seconds of each, of the later half of many calls: a network at rest is faster."""
        counted = {name: taken[1 if len(taken) <= TIMED else len(taken) // 2 :] for name, taken in self.seconds.items()}
        return {name: median(taken) for name, taken in counted.items() if taken}

    @property
    def best(self) -> str:
        """The fastest of those left."""
        return min(self._left, key=lambda name: self.measured[name])


@dataclass
class Plan:
    """The algorithm taken for a problem, with the estimates it was taken by.

    Attributes:
        algorithm: Its name; of the estimates the cheapest, until a trial ends otherwise.
        estimates: One of each algorithm that can be taken, the cheapest first.
        forced: Whether the user named the algorithm.
        profile: What the estimates rest on.
        trial: The contenders, while calls are timed to decide among them.
        measured: Seconds of a call of those that were timed.
    """

    algorithm: str
    problem: Problem
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
        """Return the fastest or, as times of a few calls vary, of its equals the one whose estimate is cheapest.

        Between nodes it is of its equals what receives least, as networks are shared.
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
            f"K={rows} D={columns} {p.dtype}, {p.depth} samples of {p.place.ranks} ranks on {p.place.nodes} "
            f"node{'s' if p.place.nodes > 1 else ''}, receiver {'shared by a node' if p.shared else 'per rank'}",
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
    def _reason(self) -> str:
        if self.forced:
            return "named by the caller"
        if self.trial is not None:
            return f"the cheapest estimate; the first calls time it against {', '.join(self.trial.algorithms[1:])}"
        return "the fastest of those timed in the first calls" if self.measured else "the cheapest estimate"


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
) -> Plan:
    """Return the plan for an exchange of ``samples`` samples on each of ``ranks`` ranks; needs no MPI.

    Args:
        rows: K.
        columns: D.
        samples: S.
        ranks: P.
        nodes: That the ranks fill.
        dtype: Of factors and sum.
        receiver: "array", "sgd" or "momentum".
        memory: "shared" or "private".
        profile: Of the machine; stated rates by default.
    """
    problem = Problem(
        shape=(rows, columns),
        dtype=np.dtype(dtype),
        counts=np.full(ranks, samples, np.int64),
        node_of=spread(ranks, nodes),
        passes={"array": 1, "sgd": 2, "momentum": 4}[receiver],
        shared=memory == "shared",
        assigns=receiver == "array",
    )
    return choose(problem, AUTO, profile)


def check_algorithm(name: object) -> None:
    """Raise ValueError unless ``name`` is an algorithm or "auto"."""
    if name != AUTO and name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join([AUTO, *ALGORITHMS])}, got {name!r}")


def choose(problem: Problem, algorithm: str = AUTO, profile: Profile | None = None, *, trials: bool = False) -> Plan:
    """Return the plan for ``problem``: the algorithm named, or the cheapest by the cost model.

    The same on every rank, as problem and profile are.

    Args:
        problem: The exchange.
        algorithm: A name of `ALGORITHMS`, or "auto".
        profile: Of the machine; stated rates by default.
        trials: Let the first calls time the best two where their estimates are close.
    """
    profile = profile or Profile()
    estimates = []
    for name, module in ALGORITHMS.items():
        if name != algorithm and not module.suits(problem):
            continue
        uses = module.cost(problem)
        seconds = [(use.kind in EXCHANGES, profile.seconds(use, problem.place)) for use in uses]
        rebuild = sum(s for exchange, s in seconds if not exchange)
        exchanged = profile.overhead(name) + sum(s for exchange, s in seconds if exchange)
        if hasattr(module, "hides"):
            exchanged -= min(module.hides(problem) * exchanged, rebuild)
        estimates.append(Estimate(name, exchanged, rebuild, module.wire_bytes(problem)))
    estimates.sort(key=lambda estimate: estimate.total)
    if algorithm != AUTO:
        return Plan(algorithm, problem, tuple(estimates), True, profile)
    plan = Plan(estimates[0].algorithm, problem, tuple(estimates), False, profile)
    limit = estimates[0].total * (_DOUBT if profile.measured else _DEEP_DOUBT)
    close = sum(e.total <= _CLOSE * estimates[0].total for e in estimates)
    contenders = [e.algorithm for e in estimates[: max(_CONTENDERS, close)] if e.total <= limit]
    if trials and problem.ranks > 1 and len(contenders) > 1:
        plan.trial = Trial(contenders, _BRIEF, far=problem.place.nodes > 1)
    return plan
