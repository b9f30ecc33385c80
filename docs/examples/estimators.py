"""Classifiers of handwritten digits, each rank with a shard: mpirun -n 2 python -m mpi4py estimators.py."""

from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sfb.models import LinearSVC, LogisticRegression, MLPClassifier

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
