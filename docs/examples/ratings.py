"""Ratings of users for items
==========================

Factors of users and items from made ratings, by alternating least squares and by gradient steps; each rank has some of
the users::

    mpirun -n 2 python -m mpi4py ratings.py

`--plot FILE` draws the error of ratings held out after each epoch.
"""

import sys

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_array

from sfb.models import MatrixFactorization

USERS, ITEMS, FACTORS, NOISE = 600, 300, 8, 0.5

world = MPI.COMM_WORLD
rng = np.random.default_rng(0)  # the same ratings on every rank
true = 3 + rng.normal(size=(USERS, FACTORS)) @ rng.normal(size=(FACTORS, ITEMS)) / FACTORS**0.5
ratings = true + NOISE * rng.normal(size=true.shape)
seen = rng.random(true.shape) < 0.6
own = slice(world.rank, None, world.size)


def entries(chosen):
    """Return ratings of this rank's users as a sparse matrix."""
    rows, columns = np.nonzero(chosen[own])
    return csr_array((ratings[own][rows, columns], (rows, columns)), shape=ratings[own].shape)


models = {}
for solver, options in (("als", {"max_iter": 25}), ("sgd", {"max_iter": 60, "learning_rate": 0.03})):
    model = MatrixFactorization(
        FACTORS, solver=solver, regularization=0.015, early_stopping=True, random_state=0, **options
    )
    models[solver] = model.fit(entries(seen))
    error, count = model.rmse(entries(~seen)) ** 2, (~seen[own]).sum()
    error = np.sqrt(world.allreduce(error * count) / world.allreduce(count))
    if world.rank == 0:
        print(f"{solver}: {model.n_iter_} epochs, RMSE of unseen ratings {error:.3f}, noise {NOISE}")
if world.rank == 0:
    items, values = models["als"].recommend(0, 3, exclude=entries(seen))
    print(
        "user 0 may like items", ", ".join(f"{item} ({value:.1f})" for item, value in zip(items, values, strict=True))
    )

if "--plot" in sys.argv and world.rank == 0:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for solver, model in models.items():
        scores = model.validation_scores_
        axes.plot(range(1, len(scores) + 1), scores, marker=".", label=f"{solver}, {world.size} ranks")
    axes.axhline(NOISE, color="0.6", linestyle=":", label="noise")
    axes.set(xlabel="epoch", ylabel="RMSE of ratings held out", ylim=(0.9 * NOISE, 1.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    figure.savefig(sys.argv[sys.argv.index("--plot") + 1], dpi=120)

# sphinx_gallery_thumbnail_path = "models/matrix_factorization.png"
