"""Metric learning on shards of the samples."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse
from shards import alone, in_batches, shard

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import sfb
from sfb import MismatchError
from sfb.models import MetricLearning

pytestmark = pytest.mark.mpi


def digits(classes=10, samples=300):
    x, y = load_digits(return_X_y=True, n_class=classes)
    return x[:samples] / 16, y[:samples]


def given(rng, count=240):
    """Return pairs of digits, and whether they are similar."""
    x, y = digits(4)
    pairs = rng.integers(0, len(x), (count, 2))
    return x[pairs], np.where(y[pairs[:, 0]] == y[pairs[:, 1]], 1, -1)


@pytest.mark.parametrize("solver", ["adam", "adagrad", "sgd"])
@pytest.mark.parametrize("init", ["pca", "identity", "random"])
def test_steps_are_those_of_one_process(world, rng, solver, init):
    (all_pairs, all_y), (pairs, y), size = in_batches(world, 24, *given(rng))
    options = {
        "n_components": 5, "init": init, "solver": solver, "shuffle": False, "max_iter": 3, "random_state": 3,
        "learning_rate_init": 0.05,
    }  # fmt: skip
    together = MetricLearning(batch_size=size, **options).fit_pairs(pairs, y)
    one = MetricLearning(batch_size=size, comm=alone(), **options).fit_pairs(all_pairs, all_y)
    np.testing.assert_allclose(together.loss_curve_, one.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(together.components_, one.components_, rtol=1e-5, atol=1e-7)
    assert together.loss_curve_[-1] < together.loss_curve_[0]
    assert_same_bits(world, together.components_)


def test_the_nearest_neighbour_is_better_than_euclids(world, rng):
    x, y = load_digits(return_X_y=True)
    x = np.hstack([x / 16, 0.4 * rng.standard_normal((len(x), 30))])  # features that say nothing
    names = np.array(list("abcdefghij"))[y]
    mine = shard(world, x[:600], names[:600])
    metric = MetricLearning(random_state=world.rank).fit(*mine)
    plain = KNeighborsClassifier(1).fit(x[:600], names[:600]).score(x[600:], names[600:])
    assert metric.score(x[600:], names[600:]) > plain + 0.02
    assert_same_bits(world, metric.components_)
    references, labels = metric.references_
    assert_same_bits(world, references)
    assert metric.n_iter_ == len(metric.loss_curve_) <= metric.max_iter
    neighbours = KNeighborsClassifier(1).fit(references, labels)
    assert metric.score(x[600:], names[600:]) == neighbours.score(metric.transform(x[600:]), names[600:])


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shards_may_be_empty(world, form, dtype):
    x, y = digits(3)
    mine = slice(None) if world.rank == world.size - 1 else slice(0, 0)
    metric = MetricLearning(8, max_iter=2, random_state=0).fit(form(x[mine].astype(dtype)), y[mine])
    assert metric.components_.shape == (8, 64)
    assert metric.components_.dtype == dtype
    assert metric.transform(form(x.astype(dtype))).dtype == dtype
    assert metric.score(form(x), y) > 0.99
    assert_same_bits(world, metric.components_)


def test_dense_and_sparse_samples_give_one_metric(world):
    mine = shard(world, *digits(4))
    dense, csr = (MetricLearning(6, max_iter=2, random_state=0).fit(form(mine[0]), mine[1]) for form in
                  (np.asarray, sparse.csr_matrix))  # fmt: skip
    np.testing.assert_allclose(dense.components_, csr.components_, atol=1e-8)


def test_the_scale_of_features_does_not_matter(world):
    mine = shard(world, *digits(4))
    for solver in ("adam", "adagrad", "sgd"):
        plain, scaled = (
            MetricLearning(6, max_iter=2, solver=solver, random_state=0).fit(factor * mine[0], mine[1])
            for factor in (1, 1024)
        )
        np.testing.assert_allclose(1024 * scaled.components_, plain.components_, rtol=1e-6, atol=1e-9)


def test_a_class_with_one_sample(world):
    x, y = digits(3)
    y = np.where(np.arange(len(y)) == 7, 11, y)
    metric = MetricLearning(max_iter=2, random_state=0).fit(*shard(world, x, y))
    assert metric.score(x, y) > 0.99


def test_distances(world, rng):
    metric = MetricLearning(5, max_iter=2, random_state=0).fit(*shard(world, *digits(4)))
    pairs, _ = given(rng, 20)
    found = metric.pair_distance(pairs)
    d = pairs[:, 0] - pairs[:, 1]
    np.testing.assert_allclose(found**2, np.einsum("ij,jk,ik->i", d, metric.get_mahalanobis_matrix(), d))
    np.testing.assert_allclose(found, -metric.pair_score(pairs))
    function = metric.get_metric()
    np.testing.assert_allclose([function(a, b) for a, b in pairs], found)
    np.testing.assert_allclose([function(a, b, squared=True) for a, b in pairs], found**2)
    np.testing.assert_allclose(np.linalg.norm(metric.transform(d), axis=1), found)
    assert list(metric.get_feature_names_out()) == [f"metriclearning{i}" for i in range(5)]
    with pytest.raises(ValueError, match="pairs must be N×2×64"):
        metric.pair_distance(pairs[:, :, 1:])


def test_pairs_as_indices(world, rng):
    x, y = digits(4)
    pairs = rng.integers(0, len(x), (60, 2))
    similar = np.where(y[pairs[:, 0]] == y[pairs[:, 1]], 1, -1)
    options = {"n_components": 4, "max_iter": 2, "random_state": 0}
    by_index = MetricLearning(**options).fit_pairs(*shard(world, pairs, similar), X=sparse.csr_array(x))
    by_value = MetricLearning(**options).fit_pairs(*shard(world, x[pairs], similar))
    assert by_index.loss_curve_[0] > 0
    assert by_index.components_.shape == by_value.components_.shape == (4, 64)
    assert by_index.references_ is None
    with pytest.raises(ValueError, match="score needs references"):
        by_index.score(x, y)


def test_partial_fit_goes_on(world):
    mine = shard(world, *digits(4))
    comm = sfb.Comm(world, reproducible=True)  # algorithms chosen by timing may round differently
    whole = MetricLearning(6, max_iter=1, random_state=0, comm=comm).fit(*mine)
    parts = MetricLearning(6, random_state=0, comm=comm).partial_fit(*mine)
    np.testing.assert_array_equal(whole.components_, parts.components_)
    for number in range(2, 5):
        parts.partial_fit(*mine)
        assert parts.n_iter_ == number
    assert parts.loss_curve_[-1] < parts.loss_curve_[0]
    assert_same_bits(world, parts.components_)
    comm.free()


def test_warm_start(world):
    mine = shard(world, *digits(4))
    metric = MetricLearning(6, random_state=0, warm_start=True).fit(*mine)
    first = metric.loss_curve_
    assert metric.fit(*mine).loss_curve_[0] < first[0]
    with pytest.raises(ValueError, match="shape 7×64"):
        metric.set_params(n_components=7).fit(*mine)


def test_components_to_start_from(world):
    x, y = digits(4)
    start = np.eye(3, 64)
    metric = MetricLearning(init=start, learning_rate_init=1e-12, max_iter=1).fit(*shard(world, x, y))
    np.testing.assert_allclose(metric.components_, start, atol=1e-9)
    with pytest.raises(ValueError, match="not all 0"):
        MetricLearning(init=0 * start).fit(*shard(world, x, y))


def test_what_a_model_file_holds(world):
    metric = MetricLearning(5, max_iter=1, random_state=0).fit(*shard(world, *digits(4)))
    arrays = metric._contents()
    assert arrays["kind"] == "nearest"
    assert (arrays["components"].shape, arrays["references"].shape, len(arrays["labels"])) == ((5, 64), (300, 5), 300)
    metric = MetricLearning(5, max_iter=1, store_references=False).fit(*shard(world, *digits(4)))
    assert set(metric._contents()) == {"kind", "model", "components"}


def test_one_class(world):
    with pytest.raises(ValueError, match="one class"):
        MetricLearning().fit(np.eye(3), np.ones(3))


def test_ranks_with_a_class_each(world):
    """Nobody has a dissimilar pair to draw."""
    if world.size == 1:
        return
    x = np.random.default_rng(world.rank).standard_normal((9, 4))
    with pytest.raises(ValueError, match="all pairs are similar"):
        MetricLearning().fit(x, np.full(9, world.rank))


def test_similar_pairs_alone(world, rng):
    pairs, y = given(rng, 20)
    with pytest.raises(ValueError, match="all pairs are similar"):
        MetricLearning().fit_pairs(pairs, np.ones_like(y))
    MetricLearning(max_iter=1).fit_pairs(pairs, -np.ones_like(y))  # nothing to collapse


def test_a_loss_that_is_not_finite(world):
    with pytest.raises(ValueError, match="learning_rate_init"), np.errstate(all="ignore"):
        MetricLearning(learning_rate_init=1e200).fit(*shard(world, *digits(4)))


def nan(x, y):
    x = x.copy()
    x[3, 2] = np.nan
    return x, y


BAD = {
    "NaN": (nan, ValueError, "NaN"),
    "one feature less": (lambda x, y: (x[:, 1:], y), ValueError, "features"),
    "a label less": (lambda x, y: (x, y[1:]), ValueError, "inconsistent numbers of samples"),
    "text for labels": (lambda x, y: (x, y.astype(str)), TypeError, "text on some ranks"),
    "regression targets": (lambda x, y: (x, np.linspace(0, 1, len(y))), ValueError, "continuous"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_one_rank_passes_is_wrong(world, what):
    change, kind, words = BAD[what]
    mine = shard(world, *digits(4))
    if world.size == 1 and what in ("one feature less", "text for labels"):
        return
    with pytest.raises(kind, match=words):
        MetricLearning().fit(*(change(*mine) if world.rank == world.size - 1 else mine))
    MetricLearning(max_iter=1).fit(*mine)  # the ranks go on


BAD_PAIRS = {
    "three in a pair": (lambda p, y: (np.concatenate([p, p[:, :1]], axis=1), y), "N×2×D"),
    "other labels": (lambda p, y: (p, y + 1), "−1 for a dissimilar"),
    "a label less": (lambda p, y: (p, y[1:]), "an element for each"),
    "NaN": (lambda p, y: (p * np.nan, y), "NaN"),
    "indices out of range": (lambda p, y: (np.full((len(p), 2), 99), y, np.ones((4, 64))), "indices of the 4 rows"),
    "indices that are none": (lambda p, y: (p[:, :, 0], y, np.ones((4, 64))), "N×2 indices of rows"),
}


@pytest.mark.parametrize("what", BAD_PAIRS)
def test_pairs_that_are_wrong(world, rng, what):
    change, words = BAD_PAIRS[what]
    pairs, y = given(rng, 20)
    with pytest.raises(ValueError, match=words):
        MetricLearning().fit_pairs(*(change(pairs, y) if world.rank == world.size - 1 else (pairs, y)))


@pytest.mark.parametrize(
    "parameters",
    [{"n_components": 0}, {"n_components": 65}, {"init": "zeros"}, {"init": np.ones(3)}, {"dissimilar_weight": 0},
     {"solver": "lbfgs"}, {"n_candidates": 0}, {"batch_size": 0.5}, {"tol": -1}],
    ids=str,
)  # fmt: skip
def test_what_parameters_must_be(world, parameters):
    mine = shard(world, *digits(4))
    with pytest.raises((ValueError, MismatchError), match=next(iter(parameters))):
        MetricLearning(**(parameters if world.rank == world.size - 1 else {})).fit(*mine)


def test_ranks_that_differ(world):
    if world.size == 1:
        return
    mine = shard(world, *digits(4))
    with pytest.raises(MismatchError, match="MetricLearning of"):
        MetricLearning(dissimilar_weight=1.0 + world.rank).fit(*mine)
    metric = MetricLearning(max_iter=1)
    if world.rank == 0:
        metric.set_params(comm=alone()).fit(*mine).set_params(comm=None)
    with pytest.raises(MismatchError, match="partial_fit of a"):
        metric.partial_fit(*mine)


def test_no_samples(world):
    with pytest.raises(ValueError, match="0 sample"):
        MetricLearning().fit(np.ones((0, 2)), np.ones(0))
    with pytest.raises(ValueError, match="0 sample"):
        MetricLearning().fit_pairs(np.ones((0, 2, 3)), np.ones(0))
