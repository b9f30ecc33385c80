"""A lasso whose features are divided among ranks, and a path of penalties: mpirun -n 2 python -m mpi4py lasso.py."""

import numpy as np
from mpi4py import MPI

from sfb.models import Lasso, lasso_path

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
