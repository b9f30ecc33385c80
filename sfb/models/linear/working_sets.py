"""Lasso and elastic net by working sets: every rank looks after its columns, all solve small problems together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sfb.kernels.stages import compiled
from sfb.models.linear.columns import Columns, Copies
from sfb.models.ranks import Ranks
from sfb.schedule import Layout, Priority, Program, run

__all__ = ["Penalty", "Solution", "Solver"]

_LEAST = 10  # columns of a working set
_PART = 50  # a first working set has this part of the columns
# The gap of a working set's own problem at which to look at all columns again, relative to that of all.
_NEARER = 0.01
_EACH = 8  # coordinates of a rank in a round of scheduled updates
_ROUNDS_OF = 5  # updates of each coordinate between two gaps
_SLOWER = 0.5  # ratio of two gaps above which all ranks go on in the same steps
_INDEPENDENT = 0.1  # correlation below which ranks update two coordinates at the same time
_FOLDED = 512
_MOST = 4000  # columns of a working set whose correlations are kept


@dataclass(frozen=True)
class Penalty:
    """The problem ½‖y − Xβ‖² + l1·‖β‖₁ + ½·l2·‖β‖².

    Attributes:
        l1: Weight of the L1 penalty, > 0.
        l2: Weight of the L2 penalty, ≥ 0.
        positive: Whether coefficients must be ≥ 0.
    """

    l1: float
    l2: float
    positive: bool


@dataclass(frozen=True)
class Solution:
    """How a problem was solved, the same on all ranks.

    Attributes:
        iterations: Working sets, and the look at all columns that ended the search.
        epochs: Passes over working sets.
        objective: The objective.
        gap: An upper bound of its distance from the least, the duality gap.
        screened: Columns whose coefficients were proved to be 0.
        converged: Whether the gap is as small as asked for.
    """

    iterations: int
    epochs: int
    objective: float
    gap: float
    screened: int
    converged: bool


class Solver:
    """Coordinate descent on working sets, for a row of problems that start from one another's solutions.

    In each iteration every rank computes xⱼᵀR for its columns, the ranks find the duality gap, drop columns that it
    proves to be out (Fercoq, Gramfort and Salmon, "Mind the duality gap: safer rules for the Lasso", ICML 2015), and
    agree on the columns that are closest to the boundary of the dual (Massias, Gramfort and Salmon, "Celer: a Fast
    Solver for the Lasso with Dual Extrapolation", ICML 2018). Copies of these go to all ranks.

    Args:
        ranks: The ranks.
        columns: The columns of this rank.
        y: Targets of all samples, centred if the columns are, float64.
        scheduled: Whether ranks update different coordinates of a working set at the same time, as
            `sfb.schedule.Priority` chooses them; else all ranks solve it in the same steps.
        seed: Seed of the schedule, the same on all ranks.

    Attributes:
        beta: The coefficients of this rank's columns, float64.
    """

    def __init__(
        self, ranks: Ranks, columns: Columns, y: np.ndarray, *, scheduled: bool = False, seed: int = 0
    ) -> None:
        self._ranks, self._columns, self._y = ranks, columns, y
        self._kernels = compiled("lasso")
        self._copies = Copies(ranks, columns)
        self._usable = np.flatnonzero(columns.squares)
        self._layout = Layout(ranks.comm, samples=len(y), variables=1) if scheduled and ranks.comm else None
        self._seed = seed
        self.beta = np.zeros(columns.count)
        self._r = np.append(y, 0.0)

    def start(self, beta: np.ndarray) -> None:
        """Start from these coefficients of this rank's columns; collective."""
        self.beta[:] = np.where(self._columns.squares > 0, beta, 0)
        change = np.zeros(len(self._r))
        own = np.flatnonzero(self.beta)
        self._kernels.residual(self._columns.form, own, self.beta[own], change)
        self._r = np.append(self._y, 0.0) + self._ranks.sum(change)

    def largest(self) -> float:
        """Return max |xⱼᵀy| over the columns of all ranks; collective."""
        found = self._correlate(self._usable, np.append(self._y, 0.0))
        return max(self._ranks.gather(float(np.abs(found).max(initial=0.0))))

    def solve(self, penalty: Penalty, *, tol: float, max_iter: int, max_epochs: int) -> Solution:
        """Solve a problem, from the present coefficients; collective.

        Args:
            penalty: The problem.
            tol: The gap, relative to the objective, at which to stop.
            max_iter: Most working sets.
            max_epochs: Most passes over working sets.

        Raises:
            ValueError: The objective is not finite; on every rank.
        """
        squares = self._columns.squares
        active = self._usable
        epochs, size = 0, 0
        for iteration in range(1, max_iter + 2):
            scores = self._correlate(active, self._r) - penalty.l2 * self.beta[active]
            scores = scores if penalty.positive else np.abs(scores)
            objective, dual, s, support = self._values(penalty, scores)
            gap = max(objective - dual, 0.0)
            converged = gap <= tol * objective
            scaled = s / penalty.l1 * scores
            lengths = np.sqrt(squares[active] + penalty.l2)
            radius = np.sqrt(2 * gap) / penalty.l1
            kept = (scaled + radius * lengths >= 1) | (self.beta[active] != 0)
            if converged or iteration > max_iter or epochs >= max_epochs:
                screened = sum(self._ranks.gather(self._columns.count - int(kept.sum())))
                return Solution(iteration, epochs, objective, gap, screened, converged)
            active, scaled, lengths = active[kept], scaled[kept], lengths[kept]
            distances = np.where(self.beta[active] != 0, -1.0, (1 - scaled) / lengths)
            if not size:
                size = max(_LEAST, self._columns.total // _PART)
            size = max(size, 2 * support)
            goal = Goal(_NEARER * gap, tol / 2, max_epochs - epochs)
            epochs += self._improve(penalty, active, distances, size, goal)
        raise AssertionError("the last iteration returns")

    def free(self) -> None:
        """Free what the solver holds on the communicator; collective."""
        if self._layout is not None:
            self._layout.free()

    def _correlate(self, ids: np.ndarray, r: np.ndarray) -> np.ndarray:
        found = np.empty(len(ids))
        self._kernels.correlate(self._columns.form, ids, r, found)
        return found

    def _values(self, penalty: Penalty, scores: np.ndarray) -> tuple[float, float, float, int]:
        """Return the objective, the dual objective, the scale of the dual point, and the non-zero coefficients.

        Every rank computes them from the same numbers, so all take the same decisions; collective.
        """
        beta = self.beta
        r = self._r[:-1] - self._r[-1] / max(1, len(self._y))
        said = self._ranks.gather(
            (
                float(scores.max(initial=0.0)),
                float(np.abs(beta).sum()),
                float(beta @ beta),
                int(np.count_nonzero(beta)),
                float(r @ r),  # these two as rank 0 has them: BLAS rounds as processors and threads have it
                float(r @ self._y),
            )
        )
        largest, support = max(each[0] for each in said), sum(each[3] for each in said)
        norm1, norm2 = sum(each[1] for each in said), sum(each[2] for each in said)
        square, along = said[0][4:]
        objective = 0.5 * square + penalty.l1 * norm1 + 0.5 * penalty.l2 * norm2
        if not np.isfinite(objective):
            raise ValueError("the objective is not finite: values are too large; scale the features and the targets")
        weight = square + penalty.l2 * norm2
        if weight == 0:
            return objective, 0.0, 0.0, support
        s = max(0.0, min(along / weight, penalty.l1 / largest if largest > 0 else np.inf))
        return objective, s * along - 0.5 * s * s * weight, s, support

    def _improve(self, penalty: Penalty, active: np.ndarray, distances: np.ndarray, size: int, goal: Goal) -> int:
        """Choose a working set, solve its problem, and return the number of passes; collective."""
        first = self._columns.first
        nearest = np.arange(len(active))
        if len(active) > size:
            nearest = np.sort(np.argpartition(distances, size - 1)[:size])
        own = active[nearest]
        said = self._ranks.gather((own + first, distances[nearest], self.beta[own], self._columns.squares[own]))
        ids, order, beta, squares = (np.concatenate(each) for each in zip(*said, strict=True))
        chosen = np.sort(np.lexsort((ids, order))[:size])
        ids = ids[chosen]
        small = WorkingSet(*self._copies.of(ids), squares[chosen], beta[chosen], self._r)
        solve = self._descend if self._layout is None else self._take_turns
        done = solve(penalty, small, goal)
        # Rounding errors of updates and extrapolations have added up; all coefficients that are not 0 are here.
        self._r[:-1], self._r[-1] = self._y, 0
        self._kernels.residual(small.form, small.places, small.beta, self._r)
        mine = (ids >= first) & (ids < first + self._columns.count)
        self.beta[ids[mine] - first] = small.beta[mine]
        return done

    def _descend(self, penalty: Penalty, small: WorkingSet, goal: Goal) -> int:
        """Solve a small problem, on each rank in the same steps; return the number of passes."""
        return small.descend(penalty, goal)[0]

    def _take_turns(self, penalty: Penalty, small: WorkingSet, goal: Goal) -> int:
        """Solve a small problem, each rank some coordinates at a time; return the number of passes; collective."""
        assert self._layout is not None
        count = len(small.beta)
        if count > _MOST:
            return self._descend(penalty, small, goal)
        self._layout.divide(samples=len(self._y), variables=count)
        width, related = _EACH * self._ranks.size, small.correlations(self._ranks)
        schedule = Priority(
            count, width, lambda chosen: related[np.ix_(chosen, chosen)], threshold=_INDEPENDENT, seed=self._seed
        )
        program, done, last = _Coordinates(penalty, small), 0, np.inf
        while done < goal.epochs:
            run(program, schedule, -(-_ROUNDS_OF * count // width), self._layout)
            done += _ROUNDS_OF
            _, objective, gap = small.descend(penalty, Goal(goal.gap, goal.part, 0))
            if gap <= max(goal.gap, goal.part * objective):
                break
            if gap > _SLOWER * last:  # what is left needs extrapolation
                return done + self._descend(penalty, small, Goal(goal.gap, goal.part, max(0, goal.epochs - done)))
            last = gap
        return done


@dataclass(frozen=True)
class Goal:
    """When to end the work on a working set.

    Attributes:
        gap: The duality gap of its own problem at which to stop.
        part: That gap, relative to the objective.
        epochs: Most passes.
    """

    gap: float
    part: float
    epochs: int


@dataclass(frozen=True)
class WorkingSet:
    """Some columns of all ranks, copied to every rank.

    Attributes:
        form: The columns as `sfb.kernels.lasso` takes them.
        places: Where the w columns are among these.
        squares: ‖xⱼ‖² of each.
        beta: The coefficient of each, which changes.
        r: The residual, which changes.
    """

    form: Any
    places: np.ndarray
    squares: np.ndarray
    beta: np.ndarray
    r: np.ndarray

    def descend(self, penalty: Penalty, goal: Goal) -> tuple[int, float, float]:
        """Take passes of coordinate descent; return their number, the objective, and the gap."""
        done, objective, gap = compiled("lasso").descend(
            self.form,
            self.places,
            self.squares,
            self.beta,
            self.r,
            penalty.l1,
            penalty.l2,
            penalty.positive,
            goal.epochs,
            goal.gap,
            goal.part,
        )
        return int(done), objective, gap

    def correlations(self, ranks: Ranks) -> np.ndarray:
        """Return the correlations of the columns, w×w, the same bits on all ranks; collective.

        Columns of more than 512 samples are folded with random signs to that length (a count sketch), so that a
        correlation costs less than an update; it then has a standard error of 0.04. Each rank computes some rows.
        """
        kernels = compiled("lasso")
        count = len(self.places)
        own = range(ranks.rank * count // ranks.size, (ranks.rank + 1) * count // ranks.size)
        folded = np.concatenate(ranks.gather(self._folded(self.places[own.start : own.stop])))
        folded.flags.writeable = False
        rows = np.empty((len(own), count))
        for row, j in zip(rows, own, strict=True):
            kernels.correlate(kernels.Dense(folded), np.arange(count), np.append(folded[j], 0.0), row)
        found = np.concatenate(ranks.gather(rows))
        norms = np.sqrt(np.diag(found))
        return found / np.outer(norms, norms)

    def _folded(self, places: np.ndarray) -> np.ndarray:
        """Return some columns, folded to at most `_FOLDED` elements each."""
        samples = len(self.r) - 1
        length = min(samples, _FOLDED)
        signs = np.ones(samples)
        if length < samples:
            signs = np.random.default_rng(0).choice([-1.0, 1.0], samples)
        to = np.arange(samples) % length
        folded = np.empty((len(places), length))
        sums = np.bincount(to, signs, length)
        for row, place in zip(folded, places, strict=True):
            if hasattr(self.form, "starts"):
                part = slice(self.form.starts[place], self.form.starts[place + 1])
                rows = self.form.rows[part]
                row[:] = np.bincount(to[rows], signs[rows] * self.form.data[part], length)
                row -= self.form.means[place] * sums
            else:
                row[:] = np.bincount(to, signs * self.form.values[place], length)
        return folded


class _Coordinates(Program):
    """Coordinates of a working set, of which each rank updates some; every rank has all columns and the residual."""

    def __init__(self, penalty: Penalty, small: WorkingSet) -> None:
        self._kernels, self._penalty, self._small = compiled("lasso"), penalty, small
        self.effects = len(small.r) + len(small.beta)

    def push(self, own: np.ndarray) -> np.ndarray:
        """Return xⱼᵀR."""
        found = np.empty(len(own))
        self._kernels.correlate(self._small.form, self._small.places[own], self._small.r, found)
        return found

    def pull(self, own: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Minimise over each coordinate alone; return the changes, and what they do to residual and coefficients."""
        small, penalty = self._small, self._penalty
        old, squares = small.beta[own], small.squares[own]
        z = total + squares * old
        shrunk = np.sign(z) * np.maximum(np.abs(z) - penalty.l1, 0)
        new = (np.maximum(shrunk, 0) if penalty.positive else shrunk) / (squares + penalty.l2)
        effect = np.zeros(self.effects)
        self._kernels.residual(small.form, small.places[own], new - old, effect[: len(small.r)])
        effect[len(small.r) :][own] = new - old
        return new - old, effect

    def commit(self, effect: np.ndarray) -> None:
        """Change residual and coefficients."""
        r, beta = self._small.r, self._small.beta
        r += effect[: len(r)]
        beta += effect[len(r) :]
