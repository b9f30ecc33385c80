"""The lasso and a path of penalties
=================================

A linear model with an L1 penalty, whose 1000 features are divided among the ranks::

    mpirun -n 2 python -m mpi4py lasso.py

`--plot FILE` draws the coefficients by the penalty.
"""

import argparse

import numpy as np
from mpi4py import MPI

from sfb.models import Lasso, lasso_path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE")
options = parser.parse_args()

world = MPI.COMM_WORLD
rng = np.random.default_rng(0)
X = rng.normal(size=(200, 1000))
y = X[:, :10].sum(axis=1) + rng.normal(size=200)
shard = slice(world.rank, None, world.size)

model = Lasso(0.2, tol=1e-8).fit(X[shard], y[shard])  # collective
alphas, coefs, gaps = lasso_path(X[shard], y[shard], n_alphas=10, eps=0.1)
if world.rank == 0:
    found = np.flatnonzero(model.coef_)
    print(f"{len(found)} features of 1000, {model.n_screened_} screened out")
    print(f"gap {model.dual_gap_ / model.objective_:.1e}; the right ten are there: {set(range(10)) <= set(found)}")
    for alpha, coef in zip(alphas, coefs.T, strict=True):
        print(f"alpha {alpha:.3f}: {np.count_nonzero(coef)} features")
    if options.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(alphas, coefs[10:].T, color="0.8", linewidth=0.7, label=["the other 990", *[None] * 989])
        axes.plot(alphas, coefs[:10].T, color="C0", label=["the ten that count", *[None] * 9])
        axes.set(xscale="log", xlabel="alpha, the weight of the penalty", ylabel="coefficient")
        axes.set_xticks(ticks := [0.1, 0.2, 0.5, 1], ticks)
        axes.set_xticks([], minor=True)
        axes.legend()
        figure.savefig(options.plot, dpi=100)

# sphinx_gallery_thumbnail_path = "examples/output/lasso.png"
