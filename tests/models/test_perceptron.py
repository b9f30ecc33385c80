"""Perceptrons on shards of the samples."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse
from shards import alone

pytest.importorskip("sklearn")

from sklearn import neural_network
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from sfb.models import MLPClassifier, MLPRegressor

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]

BATCH, STEPS = 12, 5


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


@pytest.mark.parametrize(
    ("activation", "solver", "classes"),
    [
        ("relu", "adam", 10),
        ("relu", "sgd", 2),
        ("tanh", "adamw", 2),
        ("logistic", "sgd", 10),
        ("identity", "adagrad", 10),
    ],
)
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


def test_weights_count_samples(world, rng):
    """A weight of 2 is the sample twice in its batch; a weight of 0 is none."""
    x, y = digits(4)
    x, y = x[:64], y[:64]
    weights = rng.integers(0, 3, 64).astype(float)
    settings = {"hidden_layer_sizes": (8,), "shuffle": False, "max_iter": 3, "random_state": 0, "alpha": 0.1}
    repeated = np.repeat(np.arange(64), weights.astype(int))
    for solver in ("sgd", "adam"):
        mine = slice(world.rank, None, world.size)
        model = MLPClassifier(batch_size=64, solver=solver, **settings).fit(x[mine], y[mine], weights[mine])
        expected = MLPClassifier(batch_size=200, solver=solver, comm=alone(), **settings).fit(x[repeated], y[repeated])
        np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=1e-7)
        np.testing.assert_allclose(model.coefs_[0], expected.coefs_[0], rtol=1e-6, atol=1e-8)
        assert_same_bits(world, model.coefs_[0])


def test_weights_are_those_of_scikit_learn(rng):
    x, y = digits(3)
    x, y, weights = x[:60], y[:60], rng.random(60)
    settings = {
        "hidden_layer_sizes": (8,), "solver": "sgd", "batch_size": 20, "shuffle": False, "alpha": 0.3,
        "learning_rate_init": 0.1, "warm_start": True,
    }  # fmt: skip
    theirs = neural_network.MLPClassifier(max_iter=1, random_state=0, **settings).fit(x, y)
    ours = MLPClassifier(max_iter=3, comm=alone(), **settings)
    ours.coefs_, ours.intercepts_ = [c.copy() for c in theirs.coefs_], [i.copy() for i in theirs.intercepts_]
    ours.t_ = 0
    theirs.set_params(max_iter=3).fit(x, y, weights)
    ours.fit(x, y, weights)
    np.testing.assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 2: 0.5}], ids=str)
def test_weights_of_classes(world, class_weight):
    x, y = digits(3)
    x, y = x[:90], y[:90]
    y[::3] = 0
    counts = np.bincount(y)
    factors = len(y) / (3 * counts) if class_weight == "balanced" else np.array([3.0, 1.0, 0.5])
    settings = {"hidden_layer_sizes": (6,), "shuffle": False, "max_iter": 2, "random_state": 0, "batch_size": 90}
    mine = slice(world.rank, None, world.size)
    model = MLPClassifier(class_weight=class_weight, **settings).fit(x[mine], y[mine])
    expected = MLPClassifier(comm=alone(), **settings).fit(x, y, factors[y])
    np.testing.assert_allclose(model.coefs_[0], expected.coefs_[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_stream_goes_on_from_its_moments(world, solver):
    """Parts of a stream are the epochs of a fit, and a copy by pickle goes on in the same way."""
    x, y = digits(4)
    mine = slice(world.rank, 96, world.size)
    settings = {"solver": solver, "shuffle": False, "batch_size": 24, "random_state": 0, "learning_rate_init": 0.01}
    whole = MLPClassifier((8,), max_iter=3, **settings).fit(x[mine], y[mine])
    stream = MLPClassifier((8,), **settings)
    stream.partial_fit(x[mine], y[mine], classes=range(4)).partial_fit(x[mine], y[mine])
    stream = pickle.loads(pickle.dumps(stream)).partial_fit(x[mine], y[mine])
    for ours, theirs in zip(stream.coefs_ + stream.intercepts_, whole.coefs_ + whole.intercepts_, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(stream.loss_curve_, whole.loss_curve_, rtol=1e-9)
    assert stream.t_ == whole.t_


def test_a_stream_of_targets(world, rng):
    x = rng.standard_normal((80, 3))
    y = np.tanh(x[:, 0])
    mine = slice(world.rank, None, world.size)
    model = MLPRegressor((16,), learning_rate_init=0.02, random_state=0, batch_size=20)
    for part in np.array_split(np.arange(80), 2) * 4:
        rows = part[mine]
        model.partial_fit(x[rows], y[rows])
    assert model.score(x, y) > 0.5
    assert len(model.loss_curve_) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [({"early_stopping": True}, "early_stopping"), ({"learning_rate": "cosine"}, "cosine")],
    ids=["early stopping", "cosine"],
)
def test_what_a_stream_has_not(world, options, words):
    x, y = digits(3)
    with pytest.raises(ValueError, match=words):
        MLPClassifier((4,), **options).partial_fit(x, y, classes=range(3))


def test_gradients_are_those_of_torch():
    """Of a mean cross-entropy, to the gradient of the first step."""
    torch = pytest.importorskip("torch")
    x, y = digits(10)
    x, y = x[:50], y[:50]
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-5)):
        model = MLPClassifier(
            (12, 7), "tanh", solver="sgd", momentum=0.0, learning_rate_init=1.0, alpha=0.0, max_iter=1, batch_size=50,
            shuffle=False, warm_start=True, random_state=0, comm=alone(),
        ).fit(x.astype(dtype), y)  # fmt: skip
        before = [array.copy() for array in model.coefs_ + model.intercepts_]
        model.fit(x.astype(dtype), y)
        layers = len(model.coefs_)
        parameters = [torch.tensor(array, requires_grad=True) for array in before]
        found = torch.tensor(x.astype(dtype))
        for i in range(layers):
            found = found @ parameters[i] + parameters[layers + i]
            found = torch.tanh(found) if i < layers - 1 else found
        torch.nn.functional.cross_entropy(found, torch.tensor(y)).backward()
        for old, new, parameter in zip(before, model.coefs_ + model.intercepts_, parameters, strict=True):
            gradient = parameter.grad.numpy()
            assert np.abs(old - new - gradient).max() <= tolerance * max(1, np.abs(gradient).max())


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
        for name in ("constant", "invscaling", "adaptive", "cosine")
    }  # fmt: skip
    assert curves["invscaling"][2] > curves["constant"][2]
    assert len(curves["adaptive"]) > len(curves["constant"])
    # The first epoch has the whole rate, the second a little less.
    assert curves["cosine"][0] == curves["constant"][0]
    assert curves["cosine"][2] > curves["constant"][2]


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
