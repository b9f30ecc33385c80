"""Perceptrons on shards of the samples."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse

pytest.importorskip("sklearn")

from sklearn import neural_network
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from sfb.models import MLPClassifier, MLPRegressor

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]

BATCH, STEPS = 12, 5


def alone():
    from mpi4py import MPI

    return MPI.COMM_SELF


def digits(classes=10):
    x, y = load_digits(return_X_y=True, n_class=classes)
    return x / 16, y


def in_batches(world, x):
    """Return the samples of all ranks in the order in which steps take them, and those of this rank."""
    per_rank = BATCH // world.size
    parts = x[: STEPS * per_rank * world.size].reshape(STEPS, world.size, per_rank, *x.shape[1:])
    return parts.reshape(-1, *x.shape[1:]), parts[:, world.rank].reshape(-1, *x.shape[1:])


def together_and_alone(world, make, x, y):
    """Return a model fitted by all ranks, and one fitted by one process in the same steps."""
    (all_x, mine_x), (all_y, mine_y) = in_batches(world, x), in_batches(world, y)
    size = len(mine_x) * world.size // STEPS
    return make(batch_size=size).fit(mine_x, mine_y), make(batch_size=size, comm=alone()).fit(all_x, all_y)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("classes", [2, 10])
def test_steps_are_those_of_one_process(world, activation, solver, classes):
    x, y = digits(classes)

    def make(**options):
        return MLPClassifier(
            (20, 9), activation, solver=solver, learning_rate_init=0.01, alpha=0.1, shuffle=False, max_iter=4,
            random_state=1, **options,
        )  # fmt: skip

    together, one = together_and_alone(world, make, x, y)
    np.testing.assert_allclose(together.loss_curve_, one.loss_curve_, rtol=1e-9)
    for ours, theirs in zip(together.coefs_ + together.intercepts_, one.coefs_ + one.intercepts_, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)
        assert_same_bits(world, ours)


@pytest.mark.parametrize("targets", [(), (3,)], ids=["one target", "three targets"])
def test_regression(world, rng, targets):
    x = rng.standard_normal((60, 4))
    y = np.tanh(x @ rng.standard_normal((4, *targets)))

    def make(**options):
        return MLPRegressor((16,), shuffle=False, max_iter=4, random_state=0, **options)

    together, one = together_and_alone(world, make, x, y)
    np.testing.assert_allclose(together.predict(x), one.predict(x), atol=1e-8)
    assert together.predict(x).shape == y[: len(x)].shape


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_scikit_learn(classes, nesterov):
    """From the same weights; momentum, decay and the mean of the loss are alike."""
    x, y = digits(classes)
    x, y = x[:60], y[:60]
    settings = {
        "hidden_layer_sizes": (8,), "solver": "sgd", "batch_size": 20, "shuffle": False, "alpha": 0.3,
        "learning_rate_init": 0.1, "nesterovs_momentum": nesterov, "activation": "tanh", "warm_start": True,
    }  # fmt: skip
    theirs = neural_network.MLPClassifier(max_iter=1, random_state=0, **settings).fit(x, y)
    ours = MLPClassifier(max_iter=3, comm=alone(), **settings)
    ours.coefs_, ours.intercepts_ = [c.copy() for c in theirs.coefs_], [i.copy() for i in theirs.intercepts_]
    ours.t_ = 0
    theirs.set_params(max_iter=3)
    theirs.fit(x, y)
    ours.fit(x, y)
    for a, b in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_learns_digits(world):
    x, y = digits()
    mine = slice(world.rank, 1200, world.size)
    model = MLPClassifier((64,), learning_rate_init=0.01, max_iter=15, random_state=0).fit(x[mine], y[mine])
    assert model.score(x[1200:], y[1200:]) > 0.9


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_shards_may_be_empty(world, form):
    x, y = digits(3)
    mine = slice(0, 90) if world.rank == world.size - 1 else slice(0, 0)
    model = MLPClassifier((8,), max_iter=2, shuffle=False, random_state=0).fit(form(x[mine]), y[mine])
    one = MLPClassifier((8,), max_iter=2, shuffle=False, random_state=0, comm=alone()).fit(x[:90], y[:90])
    np.testing.assert_allclose(model.predict_proba(x), one.predict_proba(x), atol=1e-8)


def test_early_stopping(world):
    x, y = digits(4)
    mine = slice(world.rank, None, world.size)
    model = MLPClassifier((16,), learning_rate_init=0.05, early_stopping=True, n_iter_no_change=2, random_state=0)
    model.fit(x[mine], y[mine])
    assert model.n_iter_ == len(model.validation_scores_) < 60
    assert model.best_validation_score_ == max(model.validation_scores_) > 0.9


def test_schedules(world):
    x, y = digits(3)
    mine = slice(world.rank, 120, world.size)
    curves = {
        name: MLPClassifier(
            (8,), solver="sgd", learning_rate=name, learning_rate_init=0.2, max_iter=30, random_state=0, tol=1e-2,
            n_iter_no_change=2,
        ).fit(x[mine], y[mine]).loss_curve_
        for name in ("constant", "invscaling", "adaptive")
    }  # fmt: skip
    assert curves["invscaling"][2] > curves["constant"][2]
    assert len(curves["adaptive"]) > len(curves["constant"])


def test_a_loss_that_is_not_finite(world):
    x, y = digits(3)
    mine = slice(world.rank, 120, world.size)
    with pytest.raises(ValueError, match="learning_rate_init"), np.errstate(all="ignore"):
        MLPRegressor((8,), solver="sgd", learning_rate_init=1e200).fit(x[mine], 1e150 * y[mine])


def test_too_few_epochs(world):
    x, y = digits(3)
    model = MLPClassifier((4,), max_iter=1)
    if world.rank == 0:
        with pytest.warns(ConvergenceWarning, match="max_iter=1"):
            model.fit(x, y)
    else:
        model.fit(x, y)


@pytest.mark.parametrize(
    "parameters",
    [{"hidden_layer_sizes": (0,)}, {"activation": "sine"}, {"solver": "lbfgs"}, {"alpha": -1}, {"batch_size": 0},
     {"learning_rate_init": "fast"}, {"max_iter": 2.5}, {"validation_fraction": 2}],
    ids=str,
)  # fmt: skip
def test_what_parameters_must_be(world, parameters):
    x, y = digits(2)
    with pytest.raises(ValueError, match=next(iter(parameters))):
        MLPClassifier(**(parameters if world.rank == world.size - 1 else {})).fit(x, y)


def test_targets_that_differ_between_ranks(world):
    if world.size == 1:
        return
    with pytest.raises(ValueError, match="targets"):
        MLPRegressor().fit(np.ones((3, 2)), np.ones((3, 2 + (world.rank == 1))))
