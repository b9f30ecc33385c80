"""Draw the figures of docs/models/: mpirun -n 4 python -m mpi4py models.py FOLDER."""

import sys
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mpi4py import MPI
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import sfb
from sfb.models import LinearSVC, LogisticRegression, MLPClassifier

COUNTS = (1, 2, 4, 8, 16, 32, 64)
SOLVERS = {"lbfgs": {"tol": 1e-9}, "sgd": {"batch_size": 64, "tol": 1e-4}, "sdca": {"tol": 1e-9}}


def made(samples=1000, features=600, classes=200):
    """Return samples of many classes, whose features differ in scale as those of text do; the same on every rank."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, features))
    y = np.arange(samples) % classes
    x = (centres[y] + 2 * rng.standard_normal((samples, features))) / np.arange(1, features + 1) ** 0.5
    return x.astype(np.float32), y


def objective(model, x, y, C):
    """Return the objective of logistic regression."""
    scores = x @ model.coef_.T.astype(np.float64) + model.intercept_
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
    return C * losses.sum() + 0.5 * (model.coef_.astype(np.float64) ** 2).sum()


def received(solver, passes, shape, samples, ranks):
    """Return the numbers that a rank receives: of a ring for L-BFGS, of the other ranks' factors otherwise."""
    rows, columns = shape
    if solver == "lbfgs":
        return passes * 2 * (ranks - 1) / ranks * rows * columns
    return passes * samples * (ranks - 1) / ranks * (rows + columns)


def logistic(comm, folder):
    """Draw how far the solvers are from the optimum against the numbers that a rank receives."""
    x, y = made()
    mine = slice(comm.rank, None, comm.size)
    least = LogisticRegression(tol=1e-6, max_iter=2000, comm=comm).fit(x[mine].astype(float), y[mine])
    best = objective(least, x, y, 1.0)
    panel, save = figure(
        "numbers that a rank receives", "objective over the optimum − 1", folder / "logistic_regression.png"
    )
    for name, options in SOLVERS.items():
        points = []
        for count in COUNTS:
            model = LogisticRegression(solver=name, max_iter=count, random_state=0, comm=comm, **options)
            model.fit(x[mine], y[mine])
            numbers = received(name, count, least.coef_.shape, len(y), comm.size)
            points.append((numbers, objective(model, x, y, 1.0) / best - 1))
        panel.loglog(*np.transpose(points), marker="o", label=name)
    save(comm)


def hinge(comm, folder):
    """Draw the gap of dual coordinate ascent against passes, for several numbers of ranks."""
    x, y = load_digits(return_X_y=True)
    panel, save = figure("passes over the samples", "duality gap, relative", folder / "linear_svc.png")
    for ranks in (1, 2, 4):
        group = comm.Split(int(comm.rank < ranks))
        points = []
        for count in COUNTS:
            model = LinearSVC(0.1, max_iter=count, tol=1e-9, random_state=0, comm=group)
            if comm.rank < ranks:
                mine = slice(group.rank, None, group.size)
                points.append((count, model.fit(x[mine] / 16, y[mine]).dual_gap_))
        if comm.rank == 0:
            panel.loglog(*np.transpose(points), marker="o", label=f"{ranks} rank{'s' * (ranks > 1)}")
    save(comm)


def perceptron(comm, folder):
    """Draw the loss of each epoch for the optimizers."""
    x, y = load_digits(return_X_y=True)
    mine = slice(comm.rank, None, comm.size)
    panel, save = figure("epoch", "mean loss", folder / "mlp.png")
    for solver, rate in {"sgd": 0.1, "adam": 1e-2, "adagrad": 3e-2}.items():
        model = MLPClassifier(
            (64,), solver=solver, learning_rate_init=rate, max_iter=30, random_state=0, tol=0, comm=comm
        )
        model.fit(x[mine] / 16, y[mine])
        panel.semilogy(range(1, 31), model.loss_curve_[:30], label=f"{solver}, {rate:g}")
    save(comm)


def figure(xlabel, ylabel, path):
    """Return axes, and a function that lets rank 0 write them."""
    drawn = Figure(figsize=(6, 3.6), layout="constrained")
    panel = drawn.subplots()
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.grid(alpha=0.3, which="both")

    def save(comm):
        if comm.rank == 0:
            panel.legend()
            drawn.savefig(path, dpi=100)

    return panel, save


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    with sfb.Comm(MPI.COMM_WORLD) as world:
        for draw in (logistic, hinge, perceptron):
            draw(world, Path(sys.argv[1]))
