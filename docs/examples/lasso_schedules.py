"""The lasso under four schedules
==============================

Coordinates of one lasso, updated together as a schedule of `sfb.schedule` says: by priority, or at random, both with a
check that none depends much on another; at random and in turn without it::

    mpirun -n 4 python -m mpi4py lasso_schedules.py

`--rounds N` makes more rounds, `--plot FILE` draws the objective.
"""

import argparse

import numpy as np
from mpi4py import MPI

from sfb import models
from sfb.schedule import Layout, Priority, Program, Random, RoundRobin, run

ALPHA, WIDTH = 0.2, 8  # weight of the penalty; coordinates of a rank in a round


class Lasso(Program):
    """Minimises ½‖y − Xβ‖²/n + α‖β‖₁; this rank has some columns of some samples."""

    def __init__(self, x, y, layout):
        self.x = x[layout.samples, layout.variables]
        self.r = y[layout.samples].copy()
        self.first, self.n = layout.variables.start, len(y)
        self.beta = np.zeros(self.x.shape[1])
        self.effects = len(self.r)

    def push(self, own):
        """Return this shard's part of xⱼᵀR; the columns have ‖xⱼ‖² = n."""
        return self.x[:, own - self.first].T @ self.r

    def pull(self, own, total):
        """Move each coordinate to its optimum, the others being as they are."""
        mine = own - self.first
        with np.errstate(over="ignore", invalid="ignore"):  # a schedule may let the coefficients diverge
            z = total / self.n + self.beta[mine]
            new = np.sign(z) * np.maximum(np.abs(z) - ALPHA, 0)
            changes, self.beta[mine] = new - self.beta[mine], new
            return changes, -self.x[:, mine] @ changes

    def commit(self, effect):
        """Take what all changes together do to the residual."""
        self.r += effect


class Even(Priority):
    """Independent coordinates, all with the same probability."""

    def feedback(self, selected, changes):
        """Count any change as one."""
        super().feedback(selected, np.ones(len(selected)))


def problem(samples=500, features=1000, group=20, seed=0):
    """Return features in groups, within which they correlate by 0.7, and targets that depend on ten of them."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.normal(size=(samples, features // group)), group, axis=1)
    x = np.sqrt(0.7) * common + np.sqrt(0.3) * rng.normal(size=(samples, features))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = x[:, ::100].sum(axis=1)
    y += 0.5 * y.std() * rng.normal(size=samples)
    return x, y - y.mean()


def objective(program, layout):
    """Return the objective; collective."""
    sums = np.array([program.r @ program.r / (2 * program.n)])
    layout.over_shards(sums)
    norm = np.array([ALPHA * np.abs(program.beta).sum()])
    layout.over_blocks(norm)
    return float(sums[0] + norm[0])


def main():
    """Run every schedule, and draw the objective against the number of updates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=320)
    parser.add_argument("--plot")
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    x, y = problem()
    (samples, features), width = x.shape, WIDTH * world.size

    def correlation(chosen):
        return x[:, chosen].T @ x[:, chosen] / samples

    checked = {"threshold": 0.3, "candidates": 2}
    schedules = {
        "priority + dependency check": Priority(features, width, correlation, **checked),
        "random + dependency check": Even(features, width, correlation, **checked),
        "random, unchecked": Random(features, width),
        "round robin, unchecked": RoundRobin(features, width),
    }
    curves = {}
    with Layout(world, samples=samples, variables=features) as layout:
        for name, schedule in schedules.items():
            program, curve = Lasso(x, y, layout), []

            def record(done, program=program, curve=curve):
                updates = len(done.selected) + (curve[-1][0] if curve else 0)
                known = curve[-1][1] if curve else np.inf
                curve.append((updates, objective(program, layout) if done.number % 5 == 0 else known))
                return curve[-1][1] > 1e6 or not np.isfinite(curve[-1][1])

            done = run(program, schedule, options.rounds, layout, until=record)
            curves[name] = np.array(curve)
            if world.rank == 0:
                print(f"{name}: objective {curve[-1][1]:.6g} after {done.updates} updates in {done.rounds} rounds")
    if world.rank == 0:
        model = models.Lasso(ALPHA, fit_intercept=False, tol=1e-13, comm=MPI.COMM_SELF).fit(x, y)
        print(f"the least objective: {model.objective_:.6g}")
        if options.plot:
            draw(curves, model.objective_, world.size, width, options.plot)


def draw(curves, least, ranks, width, path):
    """Draw the distance of each objective from the least."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(curve[::5, 0], curve[::5, 1] / least - 1, label=name)
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 1e2)
    axes.set_xlabel("updates of coordinates")
    axes.set_ylabel("objective / least − 1")
    axes.set_title(f"Lasso of 1000 features in correlated groups; {ranks} ranks, up to {width} updates at a time")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "examples/output/lasso_schedules.png"
