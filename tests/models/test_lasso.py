"""Lasso and elastic net on shards of samples or features, against scikit-learn's on all of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse

pytest.importorskip("sklearn")

from mpi4py import MPI
from sklearn import linear_model
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning

from sfb import MismatchError
from sfb.models import ElasticNet, Lasso, lasso_path
from sfb.models.linear import working_sets
from sfb.schedule import run

pytestmark = pytest.mark.mpi

TIGHT = {"tol": 1e-9}


@cache
def correlated(samples=60, features=150):
    """Return features of which neighbours correlate, some of them absent, and targets."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(samples, features))
    for j in range(1, features):
        x[:, j] = 0.7 * x[:, j - 1] + 0.7 * x[:, j]
    x[rng.random(x.shape) < 0.3] = 0
    x += 5 * (np.arange(features) % 7 == 0)  # means that are not 0
    return x, x[:, ::15].sum(axis=1) + rng.normal(size=samples)


def samples_of(world, *arrays):
    """Return every P-th sample."""
    return tuple(array[world.rank :: world.size] for array in arrays)


def features_of(world, x):
    """Return a range of features; those of the last rank may be fewer, or none."""
    width = -(-x.shape[1] // world.size)
    return x[:, world.rank * width : (world.rank + 1) * width]


def gap_of(model, x, y, alpha, l1_ratio=1.0, *, intercept=True):
    """Return the objective that scikit-learn states, and its duality gap, in float64 and by the definition."""
    n, coef = len(y), model.coef_.astype(np.float64)
    if intercept:
        x, y = x - x.mean(axis=0), y - y.mean()
    l1, l2 = n * alpha * l1_ratio, n * alpha * (1 - l1_ratio)
    tall = np.vstack([x, np.sqrt(l2) * np.eye(len(coef))])
    wide = np.concatenate([y, np.zeros(len(coef))])
    r = wide - tall @ coef
    primal = r @ r / 2 + l1 * np.abs(coef).sum()
    theta = r * min(r @ wide / (r @ r), l1 / np.abs(tall.T @ r).max())
    return primal / n, (primal - (theta @ wide - theta @ theta / 2)) / n


@cache
def reference(name, alpha, l1_ratio, intercept, positive):
    x, y = load_diabetes(return_X_y=True) if name == "diabetes" else correlated()
    model = linear_model.ElasticNet(
        alpha=alpha, l1_ratio=l1_ratio, fit_intercept=intercept, positive=positive, tol=1e-13, max_iter=10**6
    )
    return x, y, model.fit(x, y)


FORMS = {"dense": np.asarray, "Fortran": np.asfortranarray, "CSR": sparse.csr_matrix, "CSC": sparse.csc_array}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("alpha", "l1_ratio", "positive"), [(0.3, 1.0, False), (0.05, 0.6, False), (0.1, 1.0, True)])
def test_the_optimum_of_scikit_learn(world, form, intercept, alpha, l1_ratio, positive):
    x, y, expected = reference("correlated", alpha, l1_ratio, intercept, positive)
    options = {"fit_intercept": intercept, "positive": positive, **TIGHT}
    model = ElasticNet(alpha, l1_ratio=l1_ratio, **options)
    mine = samples_of(world, x, y)
    model.fit(FORMS[form](mine[0]), mine[1])
    ours, gap = gap_of(model, x, y, alpha, l1_ratio, intercept=intercept)
    theirs, _ = gap_of(expected, x, y, alpha, l1_ratio, intercept=intercept)
    assert ours == pytest.approx(theirs, rel=1e-8)
    assert model.objective_ == pytest.approx(ours, rel=1e-9)
    if not positive:  # the dual of the problem with a sign has a larger set of points
        assert gap <= 3e-9 * ours
    assert 0 <= model.dual_gap_ <= 1e-9 * ours
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-4)
    assert model.intercept_ == pytest.approx(expected.intercept_, abs=1e-3)
    np.testing.assert_allclose(model.predict(x), expected.predict(x), atol=1e-2)
    assert_same_bits(world, model.coef_)
    assert (model.coef_ >= 0).all() or not positive


@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("schedule", ["replicated", "priority"])
def test_diabetes_to_a_gap_of_1e_8(world, alpha, schedule):
    x, y, expected = reference("diabetes", alpha, 1.0, True, False)
    model = Lasso(alpha, tol=1e-8, schedule=schedule).fit(*samples_of(world, x, y))
    ours, gap = gap_of(model, x, y, alpha)
    theirs, _ = gap_of(expected, x, y, alpha)
    assert gap <= 2e-8 * ours
    assert ours == pytest.approx(theirs, rel=1e-7)


@pytest.mark.parametrize("form", ["dense", "CSC"])
def test_a_split_by_features(world, form):
    x, y, expected = reference("correlated", 0.3, 1.0, True, False)
    model = Lasso(0.3, split="features", **TIGHT).fit(FORMS[form](features_of(world, x)), y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-4)
    assert model.n_features_in_ == x.shape[1]
    np.testing.assert_allclose(model.predict(x), expected.predict(x), atol=1e-3)
    assert_same_bits(world, model.coef_)


@pytest.mark.parametrize("form", ["dense", "CSC"])
def test_parallel_updates(world, form, monkeypatch):
    """Ranks that update different coordinates at the same time find the same optimum."""
    rounds = []

    def counted(*arguments):
        rounds.append(run(*arguments))
        return rounds[-1]

    monkeypatch.setattr(working_sets, "run", counted)
    x, y, expected = reference("correlated", 0.1, 0.8, True, False)
    mine = samples_of(world, x, y)
    options = {"l1_ratio": 0.8, "schedule": "priority", "tol": 1e-7}
    model = ElasticNet(0.1, **options).fit(FORMS[form](mine[0]), mine[1])
    theirs, _ = gap_of(expected, x, y, 0.1, 0.8)
    assert gap_of(model, x, y, 0.1, 0.8)[0] == pytest.approx(theirs, rel=1e-7)
    assert (sum(done.updates for done in rounds) > 0) == (world.size > 1)


@pytest.mark.parametrize("schedule", ["replicated", "priority"])
def test_more_ranks_than_columns(world, schedule):
    x, y, _ = reference("correlated", 0.1, 1.0, True, False)
    few = x[:, :2]
    expected = linear_model.Lasso(alpha=0.1, tol=1e-12).fit(few, y)
    mine = samples_of(world, few, y)
    model = Lasso(0.1, schedule=schedule, **TIGHT).fit(*mine)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-5)


@pytest.mark.parametrize("form", ["dense", "CSR"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_columns_have_no_weight(world, form, dtype):
    x, y = correlated()
    x = x.astype(dtype)
    x[:, 3] = 0
    x[:, 5] = 0.1
    x[:, 6] = 1e6 + 0.1
    x[:, 8] = x[:, 7]  # the same twice: the optimum is not unique, the objective is
    mine = samples_of(world, x, y)
    model = Lasso(0.1, tol=1e-8).fit(FORMS[form](mine[0]), mine[1])
    assert not model.coef_[[3, 5, 6]].any()
    assert model.n_screened_ >= 3
    rest = np.delete(x, [3, 5, 6], 1).astype(float)
    expected = linear_model.Lasso(alpha=0.1, tol=1e-10, max_iter=10**5).fit(rest, y)
    theirs = gap_of(expected, rest, y, 0.1)[0]
    assert model.objective_ == pytest.approx(theirs, rel=1e-5)


def test_all_columns_are_constant(world):
    model = Lasso(0.1).fit(np.ones((4, 3)), np.arange(4.0))
    assert not model.coef_.any()
    assert model.intercept_ == pytest.approx(1.5)


def test_targets_that_are_all_the_same(world):
    model = Lasso(0.1).fit(correlated()[0], np.full(60, 7.0))
    assert not model.coef_.any()
    assert (model.intercept_, model.dual_gap_) == (pytest.approx(7), 0)


def test_a_large_alpha_leaves_no_coefficient(world):
    x, y = correlated()
    largest = np.abs((x - x.mean(0)).T @ (y - y.mean())).max() / len(y)
    mine = samples_of(world, x, y)
    assert not Lasso(largest * 1.0001).fit(*mine).coef_.any()
    assert Lasso(largest * 0.99, tol=1e-8).fit(*mine).coef_.any()
    assert Lasso(largest * 1.0001).fit(*mine).n_iter_ == 1


def test_shards_may_be_empty(world):
    x, y, expected = reference("correlated", 0.3, 1.0, True, False)
    last = world.rank == world.size - 1
    for form in (np.asarray, sparse.csr_matrix):
        model = Lasso(0.3, **TIGHT).fit(form(x if last else x[:0]), y if last else y[:0])
        np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-4)


def test_float32(world):
    x, y, expected = reference("correlated", 0.3, 1.0, True, False)
    mine = samples_of(world, x.astype(np.float32), y)
    model = Lasso(0.3, tol=1e-7).fit(*mine)
    assert model.coef_.dtype == model.predict(mine[0]).dtype == np.float32
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-3)
    mixed = Lasso(0.3).fit(mine[0].astype(np.float64 if world.rank else np.float32), mine[1])
    assert mixed.coef_.dtype == (np.float64 if world.size > 1 else np.float32)


def test_sparse_duplicates_are_summed(world):
    x, y = correlated()
    mine = samples_of(world, x, y)
    triplets = sparse.coo_matrix(mine[0])
    rows, columns = np.tile(triplets.row, 2), np.tile(triplets.col, 2)
    twice = sparse.coo_matrix((np.tile(triplets.data / 2, 2), (rows, columns)), triplets.shape)
    np.testing.assert_allclose(
        Lasso(0.3, **TIGHT).fit(twice, mine[1]).coef_, Lasso(0.3, **TIGHT).fit(*mine).coef_, atol=1e-6
    )


def test_screening_is_safe(world):
    """Features are dropped, and none of the optimum's."""
    x, y, expected = reference("correlated", 0.3, 1.0, True, False)
    model = Lasso(0.3, tol=1e-10).fit(*samples_of(world, x, y))
    assert model.n_screened_ > 100
    np.testing.assert_array_equal(model.coef_ != 0, np.abs(expected.coef_) > 1e-7)


def test_a_path(world):
    x, y = correlated()
    x = x - x.mean(0)
    y = y - y.mean()
    alphas, coefs, gaps = lasso_path(*samples_of(world, x, y), n_alphas=12, eps=0.01, tol=1e-9)
    theirs = linear_model.lasso_path(x, y, alphas=alphas, tol=1e-12, max_iter=10**5)
    np.testing.assert_allclose(alphas, theirs[0])
    np.testing.assert_allclose(coefs, theirs[1], atol=1e-3)
    assert alphas[0] == pytest.approx(np.abs(x.T @ y).max() / len(y))
    assert alphas[-1] == pytest.approx(0.01 * alphas[0])
    assert coefs.shape == (150, 12)
    assert (gaps >= 0).all()
    assert not coefs[:, 0].any()
    for alpha, coef, gap in zip(alphas, coefs.T, gaps, strict=True):
        r = y - x @ coef
        assert gap <= 1e-9 * (r @ r / 2 / len(y) + alpha * np.abs(coef).sum())
    given = lasso_path(*samples_of(world, x, y), alphas=[0.1, 0.5], tol=1e-9)
    assert given[0].tolist() == [0.5, 0.1]


def test_warm_start(world):
    mine = samples_of(world, *correlated())
    model = Lasso(0.1, warm_start=True, tol=1e-8).fit(*mine)
    epochs, coef = model.n_epochs_, model.coef_
    model.fit(*mine)
    assert epochs > 5
    assert model.n_epochs_ <= 5
    np.testing.assert_allclose(model.coef_, coef, atol=1e-5)
    np.testing.assert_allclose(model.fit(mine[0][:, :9], mine[1]).coef_.shape, 9)  # of other features


@pytest.mark.parametrize("options", [{"max_iter": 1}, {"max_epochs": 1}], ids=str)
def test_too_few_iterations(world, options):
    mine = samples_of(world, *correlated())
    model = Lasso(0.01, tol=1e-10, **options)
    if world.rank == 0:
        with pytest.warns(ConvergenceWarning, match="max_epochs"):
            model.fit(*mine)
    else:
        model.fit(*mine)
    assert model.dual_gap_ > 0


def nan(x, y):
    x = x.copy()
    x[1, 2] = np.nan
    return x, y


BAD = {
    "NaN": (nan, ValueError, "NaN"),
    "infinite targets": (lambda x, y: (x, y * np.inf), ValueError, "infinity|NaN"),
    "one feature less": (lambda x, y: (x[:, 1:], y), ValueError, "features"),
    "a target less": (lambda x, y: (x, y[1:]), ValueError, "inconsistent numbers of samples"),
    "text": (lambda x, y: (x, y.astype(str) + "a"), ValueError, "convert|dtype"),
    "complex": (lambda x, y: (x * 1j, y), ValueError, "[Cc]omplex"),
    "one dimension": (lambda x, y: (x[0], y), ValueError, "2D|dimension"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_one_rank_passes_is_wrong(world, what):
    change, kind, words = BAD[what]
    mine = samples_of(world, *correlated())
    if world.size == 1 and what == "one feature less":
        return
    with pytest.raises(kind, match=words):
        Lasso().fit(*(change(*mine) if world.rank == world.size - 1 else mine))
    Lasso().fit(*mine)  # the ranks go on


@pytest.mark.parametrize("change", [lambda y: y[1:], lambda y: y + 1], ids=["length", "values"])
def test_other_targets_with_a_split_by_features(world, change):
    x, y = correlated()
    mine = features_of(world, x)
    last = world.rank == world.size - 1
    if world.size > 1:
        with pytest.raises(ValueError, match=r"same y|inconsistent"):
            Lasso(split="features").fit(mine, change(y) if last else y)
    with pytest.raises(ValueError, match="0 feature"):
        Lasso(split="features").fit(x[:, :0], y)


@pytest.mark.parametrize(
    "parameters",
    [{"alpha": 0}, {"alpha": "1"}, {"l1_ratio": 0}, {"l1_ratio": 1.1}, {"tol": -1}, {"max_iter": 0}, {"split": "rows"},
     {"schedule": "random"}, {"random_state": -1}],
    ids=str,
)  # fmt: skip
def test_what_parameters_must_be(world, parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        ElasticNet(**(parameters if world.rank == world.size - 1 else {})).fit(*correlated())


@pytest.mark.parametrize("options", [{"eps": 0}, {"n_alphas": 0}, {"alphas": []}, {"alphas": [1, 0]}], ids=str)
def test_what_paths_refuse(world, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lasso_path(*correlated(), **options)


def test_parameters_that_differ_between_ranks(world):
    if world.size == 1:
        return
    with pytest.raises(MismatchError, match="Lasso of"):
        Lasso(0.1 + world.rank).fit(*correlated())
    with pytest.raises(MismatchError, match="lasso_path of"):
        lasso_path(*correlated(), alphas=[1.0 + world.rank])


def test_values_that_are_too_large(world):
    x, y = correlated()
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError, match="scale"):
        Lasso().fit(x, 1e200 * y)


def test_one_rank_and_many_agree(world):
    x, y = correlated()
    model = Lasso(0.1, **TIGHT).fit(*samples_of(world, x, y))
    order = np.concatenate([np.arange(len(y))[rank :: world.size] for rank in range(world.size)])
    alone = Lasso(0.1, **TIGHT, comm=MPI.COMM_SELF).fit(x[order], y[order])
    np.testing.assert_allclose(model.coef_, alone.coef_, atol=1e-6)
