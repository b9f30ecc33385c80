"""Classifiers on shards
=====================

Three classifiers of handwritten digits. Each rank fits every P-th sample, and all ranks hold the same models::

    mpirun -n 2 python -m mpi4py estimators.py

`--plot FILE` draws digits that the perceptron takes for others.
"""

import argparse

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sfb.models import LinearSVC, LogisticRegression, MLPClassifier

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE")
options = parser.parse_args()

world = MPI.COMM_WORLD
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
shard = slice(world.rank, None, world.size)

for model in (
    LogisticRegression(),
    LinearSVC(C=0.1, random_state=0),
    MLPClassifier((64,), learning_rate_init=0.01, tol=0.01, random_state=0),
):
    model.fit(X_train[shard], y_train[shard])
    if world.rank == 0:
        print(f"{type(model).__name__}: accuracy {model.score(X_test, y_test):.3f}")

if world.rank == 0 and options.plot:
    from matplotlib.figure import Figure

    found = model.predict(X_test)
    wrong = np.flatnonzero(found != y_test)[:8]
    figure = Figure(figsize=(8, 1.6), layout="constrained")
    for axes, i in zip(figure.subplots(1, 8), wrong, strict=False):
        axes.imshow(X_test[i].reshape(8, 8), cmap="gray_r")
        axes.set_title(f"{y_test[i]} taken for {found[i]}", fontsize=8)
        axes.set_axis_off()
    figure.savefig(options.plot, dpi=100)

# sphinx_gallery_thumbnail_path = "examples/output/estimators.png"
