"""Linear support vector machines on shards of the samples, against liblinear's on all of them."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse
from shards import alone, digits, in_batches, shard

pytest.importorskip("sklearn")

from sklearn import svm
from sklearn.exceptions import ConvergenceWarning

from sfb.models import LinearSVC

pytestmark = pytest.mark.mpi


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


# Liblinear of scikit-learn 1.7, the last for Python 3.10, may warn that it has not reached a tolerance of 1e-6.
STOPS_EARLY = pytest.mark.filterwarnings("ignore:Liblinear failed to converge")


@STOPS_EARLY
@pytest.mark.parametrize(
    ("form", "dtype", "classes", "C"),
    [
        (np.asarray, np.float64, 2, 0.3),
        (np.asarray, np.float32, 5, 0.03),
        (sparse.csr_matrix, np.float32, 2, 0.03),
        (sparse.csr_matrix, np.float64, 5, 0.3),
    ],
)
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
    repeated = LinearSVC(0.1, comm=alone()).fit(x, y, counted)
    assert hinge(model, x, y, 0.1, counted) == pytest.approx(hinge(repeated, x, y, 0.1, counted), rel=2e-4)


def test_too_few_passes(world):
    mine = shard(world, *digits(4))
    model = LinearSVC(max_iter=1, tol=1e-9)
    if world.rank == 0:
        with pytest.warns(ConvergenceWarning, match="max_iter=1 passes: it is .* from the optimum"):
            model.fit(*mine)
    else:
        model.fit(*mine)


@STOPS_EARLY
def test_warm_start(world):
    """The dual variables of a fit before serve with another C, too; those of other samples do not."""
    x, y = digits(4)
    mine = shard(world, x, y)
    options = {"max_iter": 5000, "random_state": 0}
    model = LinearSVC(0.3, warm_start=True, **options).fit(*mine)
    assert model.n_iter_ > 4
    assert model.fit(*mine).n_iter_ <= 2
    for C in (0.29, 0.31):  # smaller, then larger
        model.set_params(C=C).fit(*mine)
        assert model.n_iter_ < LinearSVC(C, **options).fit(*mine).n_iter_
        expected = svm.LinearSVC(C=C, multi_class="crammer_singer", tol=1e-6, max_iter=10**6).fit(x, y)
        assert hinge(model, x, y, C) <= hinge(expected, x, y, C) * (1 + 1e-4)
    model.fit(mine[0], mine[1][::-1])
    assert model.dual_gap_ <= model.tol


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_stream_is_that_of_one_process(world, rng, form, classes, intercept):
    x, y = digits(classes)
    everything, mine, batch = in_batches(world, 20, x, y, rng.random(len(y)))
    options = {"batch_size": batch, "fit_intercept": intercept, "intercept_scaling": 2.0}
    together, one = (LinearSVC(comm=comm, **options) for comm in (None, alone()))
    for _ in range(3):
        together.partial_fit(form(mine[0]), mine[1], np.unique(y), mine[2])
        one.partial_fit(everything[0], everything[1], np.unique(y), everything[2])
    np.testing.assert_allclose(together.coef_, one.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(together.intercept_, one.intercept_, rtol=1e-8, atol=1e-10)
    assert intercept or not together.intercept_.any()
    assert_same_bits(world, together.coef_)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_stream_approaches_the_objective_of_all_samples(world, rng, classes):
    x, y = digits(classes)
    mine = shard(world, x, y)
    model = LinearSVC(0.01, batch_size=10)
    order = np.concatenate([rng.permutation(len(mine[1])) for _ in range(30)])
    for part in np.array_split(order, 3):
        model.partial_fit(mine[0][part], mine[1][part], np.unique(y))
    expected = LinearSVC(0.3, comm=alone(), max_iter=5000).fit(x, y)  # 30 times the samples
    assert hinge(model, x, y, 0.3) <= hinge(expected, x, y, 0.3) * 1.25
