"""Linear classifiers on shards of the samples, against scikit-learn's on all of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse

pytest.importorskip("sklearn")

from sklearn import linear_model, svm
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from sfb import MismatchError
from sfb.models import LinearSVC, LogisticRegression

pytestmark = pytest.mark.mpi

SAMPLES = 150
TIGHT = {"tol": 1e-6, "max_iter": 5000}


def digits(classes=10):
    """Return some pixels of the first digits, with text for labels."""
    x, y = load_digits(return_X_y=True, n_class=classes)
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    return x[:SAMPLES, 10:54:3] / 16, names[y[:SAMPLES]]


def shard(world, *arrays, among=None):
    """Return every P-th sample of this rank; none if it is not ``among`` the ranks that have any."""
    among = list(range(world.size)) if among is None else among
    step = len(among)
    start = among.index(world.rank) if world.rank in among else len(arrays[0])
    return tuple(array[start::step] for array in arrays)


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
    model = linear_model.LogisticRegression(C=C, l1_ratio=l1_ratio, solver=solver, tol=1e-5, max_iter=5000)
    return model.fit(*digits(classes))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.coo_array])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("C", "l1_ratio"), [(1.0, 0.0), (0.05, 0.0), (0.1, 1.0), (0.1, 0.3)])
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
    alone = LogisticRegression(**TIGHT, comm=_alone()).fit(x, y)
    np.testing.assert_allclose(model.coef_, alone.coef_, atol=1e-6)


def _alone():
    from mpi4py import MPI

    return MPI.COMM_SELF


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


def hinge(model, x, y, C, weights=1.0):
    """Return the objective of the multi-class support vector machine, with a penalty of the intercept."""
    coef, intercept = model.coef_.astype(np.float64), model.intercept_
    if len(coef) == 1:  # the rows of both classes are opposite
        coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    scores = x @ coef.T + intercept
    picked = np.arange(len(y)), np.searchsorted(model.classes_, y)
    margins = scores - scores[picked][:, None] + 1
    margins[picked] = 0
    return ((coef**2).sum() + (intercept**2).sum()) / 2 + C * (weights * margins.max(axis=1)).sum()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("C", [0.03, 0.3])
def test_the_objective_of_liblinear(world, form, dtype, classes, C):
    x, y = digits(classes)
    mine = shard(world, x.astype(dtype), y)
    model = LinearSVC(C, random_state=world.rank, max_iter=5000).fit(form(mine[0]), mine[1])
    expected = svm.LinearSVC(C=C, multi_class="crammer_singer", tol=1e-6, max_iter=10**6).fit(x, y)
    assert hinge(model, x, y, C) <= hinge(expected, x, y, C) * (1 + 1e-4)
    assert model.dual_gap_ <= model.tol
    assert model.coef_.shape == expected.coef_.shape
    assert model.coef_.dtype == dtype
    for found in (model.coef_, model.intercept_):
        assert_same_bits(world, found)


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_weights_of_a_support_vector_machine(world, weights, rng):
    x, y = digits(3)
    own = rng.random(len(y))
    mine = shard(world, x, y, own)
    model = LinearSVC(0.1, class_weight=weights, max_iter=5000).fit(*mine)
    counted = own if weights is None else own * (own.sum() / 3 / np.array([own[y == label].sum() for label in y]))
    repeated = LinearSVC(0.1, comm=_alone()).fit(x, y, counted)
    assert hinge(model, x, y, 0.1, counted) == pytest.approx(hinge(repeated, x, y, 0.1, counted), rel=2e-4)


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
     {"class_weight": "even"}, {"C": True}],
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
        model = LogisticRegression(warm_start=True, comm=_alone(), **TIGHT).fit(*digits(4)).set_params(comm=None)
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
