"""Logistic regression on shards of the samples, against scikit-learn's on all of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse
from shards import alone, digits, in_batches, shard

pytest.importorskip("sklearn")

from sklearn import linear_model
from sklearn.exceptions import ConvergenceWarning

from sfb import MismatchError
from sfb.models import LogisticRegression

pytestmark = pytest.mark.mpi

TIGHT = {"tol": 1e-6, "max_iter": 5000}


def objective(model, x, y, weights=None, *, C=1.0, l1_ratio=0.0):
    """Return the objective that scikit-learn states, in float64."""
    scores = x @ model.coef_.astype(np.float64).T + model.intercept_
    if scores.shape[1] == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    scores -= scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    penalty = (1 - l1_ratio) / 2 * (model.coef_**2).sum() + l1_ratio * abs(model.coef_).sum()
    return (losses if weights is None else losses * weights).sum() + (0 if np.isinf(C) else penalty / C)


@cache
def reference(classes, C, l1_ratio):
    """Return what scikit-learn fits to all samples."""
    solver = "saga" if l1_ratio else "lbfgs"
    model = linear_model.LogisticRegression(C=C, solver=solver, tol=1e-5, max_iter=5000)
    if l1_ratio:
        model.set_params(l1_ratio=l1_ratio)
        if model.penalty == "l2":  # scikit-learn 1.7, the last for Python 3.10
            model.set_params(penalty="elasticnet")
    return model.fit(*digits(classes))


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    ("C", "l1_ratio", "form"),
    [
        (1.0, 0.0, np.asarray),
        (1.0, 0.0, sparse.csr_matrix),
        (0.05, 0.0, sparse.coo_array),
        (0.1, 1.0, np.asarray),
        (0.1, 0.3, sparse.csr_matrix),
    ],
)
def test_the_objective_of_scikit_learn(world, form, classes, C, l1_ratio):
    x, y = digits(classes)
    mine = shard(world, x, y)
    model = LogisticRegression(C, l1_ratio=l1_ratio, **TIGHT).fit(form(mine[0]), mine[1])
    expected = reference(classes, C, l1_ratio)
    ours, theirs = (objective(each, x, y, C=C, l1_ratio=l1_ratio) for each in (model, expected))
    assert ours <= theirs * (1 + 1e-6)
    assert model.coef_.shape == expected.coef_.shape
    assert list(model.classes_) == list(expected.classes_)
    for found in (model.coef_, model.intercept_):
        assert_same_bits(world, found)
    if not l1_ratio:
        np.testing.assert_allclose(model.predict_proba(x), expected.predict_proba(x), atol=1e-3)


def test_dense_and_sparse_samples_give_the_same_model(world):
    mine = shard(world, *digits(10))
    models = [LogisticRegression(**TIGHT).fit(form(mine[0]), mine[1]) for form in (np.asarray, sparse.csr_array)]
    np.testing.assert_allclose(models[0].coef_, models[1].coef_, atol=1e-5)


def test_no_penalty(world):
    x, y = digits(3)
    x = x[:, 3:8]
    mine = shard(world, x, y)
    model = LogisticRegression(np.inf, **TIGHT).fit(*mine)
    expected = linear_model.LogisticRegression(C=np.inf, **TIGHT).fit(x, y)
    assert objective(model, x, y, C=np.inf) <= objective(expected, x, y, C=np.inf) * (1 + 1e-6)


@pytest.mark.parametrize("among", [[0], [-1]], ids=["the first rank", "the last rank"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_shards_may_be_empty(world, among, form):
    x, y = digits(4)
    mine = shard(world, x, y, among=[rank % world.size for rank in among])
    model = LogisticRegression(**TIGHT).fit(form(mine[0]), mine[1])
    expected = LogisticRegression(**TIGHT, comm=alone()).fit(x, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-6)


def test_ranks_with_labels_of_their_own(world):
    """The classes are those of all ranks, though no rank has seen them all."""
    x = np.random.default_rng(world.rank).normal(2.0 * world.rank, 1, (20, 3))
    model = LogisticRegression(**TIGHT).fit(np.vstack([x, -9 - x]), np.repeat([10 * world.rank, -5], 20))
    assert list(model.classes_) == [-5, *range(0, 10 * world.size, 10)]
    assert model.predict_proba(x).shape == (20, world.size + 1)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"zero": 3.0, "two": 0.5}], ids=str)
def test_weights(world, class_weight, rng):
    x, y = digits(3)
    keep = (y != "one") | (rng.random(len(y)) < 0.3)
    x, y = x[keep], y[keep]
    weights = rng.integers(0, 3, len(y)).astype(float)
    mine = shard(world, x, y, weights)
    model = LogisticRegression(class_weight=class_weight, **TIGHT).fit(*mine)
    expected = linear_model.LogisticRegression(class_weight=class_weight, **TIGHT).fit(x, y, weights)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(world, dtype):
    x, y = digits(3)
    mine = shard(world, x.astype(dtype), y)
    model = LogisticRegression(**TIGHT).fit(*mine)
    assert model.coef_.dtype == model.predict_proba(mine[0]).dtype == dtype
    mixed = LogisticRegression(**TIGHT).fit(mine[0].astype(np.float64 if world.rank else np.float32), mine[1])
    assert mixed.coef_.dtype == (np.float64 if world.size > 1 else np.float32)


def test_warm_start(world):
    x, y = digits(4)
    mine = shard(world, x, y)
    model = LogisticRegression(warm_start=True, **TIGHT).fit(*mine)
    first = model.n_iter_[0]
    assert model.fit(*mine).n_iter_[0] < first / 4


def test_too_few_iterations(world):
    mine = shard(world, *digits(4))
    model = LogisticRegression(max_iter=2)
    if world.rank == 0:
        with pytest.warns(ConvergenceWarning, match="max_iter=2"):
            model.fit(*mine)
    else:
        model.fit(*mine)


def nan(x, y):
    x = x.copy()
    x[3, 2] = np.nan
    return x, y


BAD = {
    "NaN": (nan, ValueError, "NaN"),
    "one feature less": (lambda x, y: (x[:, 1:], y), ValueError, "features"),
    "a label less": (lambda x, y: (x, y[1:]), ValueError, "inconsistent numbers of samples"),
    "regression targets": (lambda x, y: (x, np.linspace(0, 1, len(y))), ValueError, "continuous"),
    "numbers for labels": (lambda x, y: (x, np.arange(len(y)) % 2), TypeError, "text on some ranks"),
    "complex": (lambda x, y: (x * 1j, y), ValueError, "[Cc]omplex"),
    "negative weights": (lambda x, y: (x, y, -np.ones(len(y))), ValueError, "[Nn]egative"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_one_rank_passes_is_wrong(world, what):
    change, kind, words = BAD[what]
    mine = shard(world, *digits(4))
    if world.size == 1 and what in ("one feature less", "numbers for labels"):
        return
    with pytest.raises(kind, match=words):
        LogisticRegression().fit(*(change(*mine) if world.rank == world.size - 1 else mine))
    LogisticRegression(**TIGHT).fit(*mine)  # the ranks go on


@pytest.mark.parametrize(
    "parameters",
    [{"C": 0}, {"C": "1"}, {"l1_ratio": 2}, {"tol": 0}, {"max_iter": -1}, {"class_weight": {"ten": 1}},
     {"class_weight": "even"}, {"C": True}, {"solver": "newton"}, {"batch_size": 0},
     {"l1_ratio": 0.5, "solver": "sdca"}, {"C": np.inf, "solver": "sdca"}],
    ids=str,
)  # fmt: skip
def test_what_parameters_must_be(world, parameters):
    mine = shard(world, *digits(4))
    with pytest.raises(ValueError, match=next(iter(parameters))):
        LogisticRegression(**(parameters if world.rank == world.size - 1 else {})).fit(*mine)


@pytest.mark.parametrize("parameters", [{"C": 2.0}, {"class_weight": "balanced"}, {"warm_start": True}], ids=str)
def test_parameters_that_differ_between_ranks(world, parameters):
    if world.size == 1:
        pytest.skip("one rank has nobody to differ from")
    mine = shard(world, *digits(4))
    with pytest.raises(MismatchError, match="LogisticRegression of"):
        LogisticRegression(**(parameters if world.rank == 0 else {})).fit(*mine)


def test_ranks_start_from_the_model_of_rank_0(world):
    mine = shard(world, *digits(4))
    model = LogisticRegression(warm_start=True, **TIGHT)
    if world.rank == 0:
        model = LogisticRegression(warm_start=True, comm=alone(), **TIGHT).fit(*digits(4)).set_params(comm=None)
    assert_same_bits(world, model.fit(*mine).coef_)


def test_a_null_communicator(world):
    from mpi4py import MPI

    with pytest.raises(TypeError, match="COMM_NULL"):
        LogisticRegression(comm=world.Split(MPI.UNDEFINED)).fit(*digits(4))


def test_one_class(world):
    with pytest.raises(ValueError, match="one class"):
        LogisticRegression().fit(np.ones((3, 2)), np.ones(3))


def test_no_samples(world):
    with pytest.raises(ValueError, match="0 sample"):
        LogisticRegression().fit(np.ones((0, 2)), np.ones(0))


@pytest.mark.parametrize(
    ("form", "classes", "C"), [(np.asarray, 2, 0.05), (sparse.csr_matrix, 5, 0.05), (np.asarray, 5, 1.0)]
)
def test_dual_coordinate_ascent(world, form, classes, C):
    """The gap that the solver states is not below the distance to the optimum of scikit-learn."""
    x, y = digits(classes)
    mine = shard(world, x, y)
    model = LogisticRegression(C, solver="sdca", random_state=world.rank, max_iter=3000).fit(form(mine[0]), mine[1])
    expected = objective(reference(classes, C, 0.0), x, y, C=C)
    assert model.dual_gap_ <= model.tol
    assert expected * (1 - 1e-6) <= objective(model, x, y, C=C) <= expected * (1 + 2 * model.tol)
    for found in (model.coef_, model.intercept_):
        assert_same_bits(world, found)


def test_dual_coordinate_ascent_without_intercept_by_weights_in_float32(world, rng):
    x, y = digits(3)
    weights = rng.random(len(y))
    mine = shard(world, x.astype(np.float32), y, weights)
    settings = {"fit_intercept": False, "class_weight": {"two": 2.0}}
    model = LogisticRegression(0.5, solver="sdca", tol=1e-3, max_iter=2000, **settings).fit(*mine)
    expected = linear_model.LogisticRegression(C=0.5, **settings, **TIGHT).fit(x, y, weights)
    assert model.coef_.dtype == np.float32
    counted = weights * np.where(y == "two", 2.0, 1.0)
    ours, theirs = (objective(each, x, y, counted, C=0.5) for each in (model, expected))
    assert theirs * (1 - 1e-5) <= ours <= theirs * (1 + 2e-3)


def test_dual_coordinate_ascent_goes_on(world):
    mine = shard(world, *digits(4))
    model = LogisticRegression(solver="sdca", warm_start=True, max_iter=3000).fit(*mine)
    passes = model.n_iter_[0]
    assert passes > 4
    assert model.fit(*mine).n_iter_[0] <= 2
    model.set_params(C=0.9).fit(*mine)
    assert model.n_iter_[0] < passes
    model.set_params(C=1.0).fit(*(array[: len(mine[1]) // 2] for array in mine))  # other samples: from the start
    assert model.dual_gap_ <= model.tol


@pytest.mark.parametrize(
    ("form", "classes", "l1_ratio"), [(np.asarray, 2, 0.0), (sparse.csr_matrix, 5, 0.0), (np.asarray, 5, 1.0)]
)
def test_gradient_descent(world, form, classes, l1_ratio):
    x, y = digits(classes)
    mine = shard(world, x, y)
    settings = {
        "l1_ratio": l1_ratio,
        "solver": "sgd",
        "tol": 1e-5,
        "max_iter": 500,
        "batch_size": 24,
        "random_state": 0,
    }
    model = LogisticRegression(0.1, **settings).fit(form(mine[0]), mine[1])
    expected = objective(reference(classes, 0.1, l1_ratio), x, y, C=0.1, l1_ratio=l1_ratio)
    assert objective(model, x, y, C=0.1, l1_ratio=l1_ratio) <= expected * 1.04
    if l1_ratio == 1:
        assert np.mean(model.coef_ == 0) > 0.3
    for found in (model.coef_, model.intercept_):
        assert_same_bits(world, found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options", [{"l1_ratio": 0.5}, {"class_weight": {"two": 2.0}}, {"fit_intercept": False}], ids=str
)
def test_a_stream_is_that_of_one_process(world, rng, dtype, options):
    """Each batch of all ranks is a step, and a step is that of one process with all samples of the batch."""
    x, y = digits(4)
    everything, mine, batch = in_batches(world, 20, x[:120].astype(dtype), y[:120], rng.random(120))  # six batches
    models = [LogisticRegression(batch_size=batch, comm=comm, **options) for comm in (None, alone())]
    for model, (xs, ys, weights) in zip(models, (mine, everything), strict=True):
        for part in range(2):
            rows = slice(len(ys) // 2 * part, len(ys) // 2 * (part + 1))
            model.partial_fit(xs[rows], ys[rows], np.unique(y), weights[rows])
    together, one = models
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(together.coef_, one.coef_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(together.intercept_, one.intercept_, rtol=tolerance, atol=tolerance)
    assert_same_bits(world, together.coef_)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_stream_approaches_the_objective_of_all_samples(world, rng, classes):
    x, y = digits(classes)
    mine = shard(world, x, y)
    model = LogisticRegression(0.01, batch_size=10)
    order = np.concatenate([rng.permutation(len(mine[1])) for _ in range(20)])
    for part in np.array_split(order, 3):
        model.partial_fit(mine[0][part], mine[1][part], np.unique(y))
    # 20 times the samples are 20 times the weight of the loss.
    expected = LogisticRegression(0.2, comm=alone(), **TIGHT).fit(x, y)
    assert objective(model, x, y, C=0.2) <= objective(expected, x, y, C=0.2) * 1.05
    before = model.coef_
    assert not np.array_equal(model.partial_fit(*mine).coef_, before)


def test_parts_of_a_stream_may_be_empty(world):
    x, y = digits(3)
    model = LogisticRegression()
    for sender in range(4):
        rows = slice(None) if world.rank == sender % world.size else slice(0, 0)
        model.partial_fit(x[rows], y[rows], np.unique(y))
    assert model.score(x, y) > 0.8


def test_a_fit_and_then_a_stream(world):
    """A model that has been fitted changes little by more samples of the same kind."""
    x, y = digits(3)
    mine = shard(world, x, y)
    model = LogisticRegression(**TIGHT).fit(*mine)
    before = objective(model, x, y)
    model.partial_fit(*mine)
    assert before < objective(model, x, y) < before * 1.2


STREAMS = {
    "no classes": ({}, ValueError, "classes must be passed"),
    "a label that is no class": ({"classes": ["zero", "one"]}, ValueError, "none of the classes"),
    "one class": ({"classes": ["zero"]}, ValueError, "2 classes"),
    "weights of another shape": ({"sample_weight": np.ones(2)}, ValueError, "sample_weight"),
}


@pytest.mark.parametrize("what", STREAMS)
def test_what_one_rank_passes_of_a_stream_is_wrong(world, what):
    options, kind, words = STREAMS[what]
    mine = shard(world, *digits(3))
    right = {"classes": ["zero", "one", "two"]}
    if world.rank == world.size - 1:
        right = options if "sample_weight" not in options else right | options
    with pytest.raises(kind, match=f"{words}|others on other ranks"):
        LogisticRegression().partial_fit(*mine, **right)


def test_classes_that_change(world):
    mine = shard(world, *digits(3))
    model = LogisticRegression().partial_fit(*mine, classes=["zero", "one", "two"])
    with pytest.raises(ValueError, match="not the same as on last call"):
        model.partial_fit(*mine, classes=["zero", "one", "two", "three"])
    with pytest.raises(ValueError, match="not supported for partial_fit"):
        LogisticRegression(class_weight="balanced").partial_fit(*mine, classes=["zero", "one", "two"])


def test_large_dense_samples_go_in_parts(rng):
    """More samples than are worked on at a time give the model of scikit-learn."""
    x = rng.standard_normal((1300, 4))
    y = (x @ rng.standard_normal((4, 3)) + rng.standard_normal((1300, 3))).argmax(axis=1)
    weights = rng.random(1300)
    model = LogisticRegression(**TIGHT, comm=alone()).fit(x, y, weights)
    expected = linear_model.LogisticRegression(**TIGHT).fit(x, y, weights)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-4)
