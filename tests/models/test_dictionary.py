"""Dictionary learning on shards of the samples, against scikit-learn's on all of them."""

from __future__ import annotations

import pickle
from functools import cache

import numpy as np
import pytest
from oracle import assert_same_bits
from shards import alone, in_batches, shard

pytest.importorskip("sklearn")

from sklearn import decomposition, linear_model
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from sfb import MismatchError
from sfb.models import DictionaryLearning, MiniBatchDictionaryLearning

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]

BOTH = [DictionaryLearning, MiniBatchDictionaryLearning]


def digits(samples=120):
    return load_digits().data[:samples] / 16


def atoms(count=12):
    """Return samples of length 1."""
    x = load_digits().data[500 : 500 + count]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def objective(model, x, alpha):
    """Return the objective with the best codes, by scikit-learn."""
    atoms = model.components_.astype(np.float64)
    codes = decomposition.sparse_encode(x, atoms, algorithm="lasso_cd", alpha=alpha, max_iter=5000)
    return 0.5 * ((x - codes @ atoms) ** 2).sum() + alpha * abs(codes).sum()


@cache
def reference(kind, components, alpha):
    """Return the objective that scikit-learn reaches on all samples."""
    options = {"alpha": alpha, "fit_algorithm": "cd", "random_state": 0}
    if kind is DictionaryLearning:
        model = decomposition.DictionaryLearning(components, max_iter=60, tol=1e-5, **options)
    else:
        options |= {"max_iter": 20, "batch_size": 24, "tol": 0, "max_no_improvement": None}
        model = decomposition.MiniBatchDictionaryLearning(components, **options)
    return objective(model.fit(digits()), digits(), alpha)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(("components", "alpha"), [(8, 0.1), (80, 0.3)])
def test_the_objective_of_scikit_learn(world, kind, components, alpha):
    (mine,) = shard(world, digits())
    options = (
        {"max_iter": 60, "tol": 1e-5}
        if kind is DictionaryLearning
        else {"max_iter": 20, "batch_size": 24, "tol": 0, "max_no_improvement": None}
    )
    model = kind(components, alpha=alpha, random_state=0, **options).fit(mine)
    assert objective(model, digits(), alpha) <= 1.02 * reference(kind, components, alpha)
    assert (np.linalg.norm(model.components_, axis=1) <= 1 + 1e-9).all()
    assert_same_bits(world, model.components_)


@pytest.mark.parametrize("dict_init", [None, atoms()], ids=["singular vectors", "samples"])
def test_iterations_are_those_of_one_process(world, dict_init):
    (mine,) = shard(world, digits())
    options = {"n_components": 12, "alpha": 0.2, "max_iter": 8, "dict_init": dict_init, "random_state": 0}
    together = DictionaryLearning(**options).fit(mine)
    one = DictionaryLearning(comm=alone(), **options).fit(digits())
    np.testing.assert_allclose(together.error_, one.error_, rtol=1e-5)
    cosines = np.sum(together.components_ * one.components_, axis=1)
    np.testing.assert_allclose(abs(cosines), np.sum(one.components_**2, axis=1), rtol=1e-2)
    assert (np.diff(together.error_) <= 1e-6 * together.error_[0]).all()
    assert together.n_iter_ == len(together.error_)
    assert together.error_[-1] == pytest.approx(objective(together, digits(), 0.2), rel=0.02)


def test_steps_are_those_of_one_process(world):
    (everything,), (mine,), size = in_batches(world, 24, digits())
    options = {"n_components": 12, "alpha": 0.2, "max_iter": 3, "dict_init": atoms(), "shuffle": False, "tol": 0}
    together = MiniBatchDictionaryLearning(batch_size=size, **options).fit(mine)
    one = MiniBatchDictionaryLearning(batch_size=size, comm=alone(), **options).fit(everything)
    assert (together.n_steps_, together.n_iter_) == (one.n_steps_, one.n_iter_) == (3 * len(everything) // size, 3)
    np.testing.assert_allclose(together.components_, one.components_, atol=1e-6)
    assert_same_bits(world, together.components_)
    streamed = MiniBatchDictionaryLearning(**{**options, "batch_size": 7})
    each = size // world.size
    for step in range(together.n_steps_):
        start = step % (len(mine) // each) * each
        streamed.partial_fit(mine[start : start + each])
    assert streamed.n_steps_ == together.n_steps_
    np.testing.assert_allclose(streamed.components_, one.components_, atol=1e-6)


def test_partial_fit_goes_on_from_fit_and_from_pickle(world):
    (mine,) = shard(world, digits())
    model = MiniBatchDictionaryLearning(6, alpha=0.2, max_iter=1, random_state=0).fit(mine)
    copy, steps = pickle.loads(pickle.dumps(model)), model.n_steps_
    np.testing.assert_array_equal(copy.partial_fit(mine).components_, model.partial_fit(mine).components_)
    assert model.n_steps_ == steps + 1
    assert_same_bits(world, model.components_)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shards_may_be_empty(world, kind, dtype):
    x = digits().astype(dtype)
    mine = x if world.rank == world.size - 1 else x[:0]
    model = kind(10, alpha=0.2, max_iter=5, random_state=0).fit(mine)
    assert model.components_.dtype == model.transform(x).dtype == dtype
    alone_ = kind(10, alpha=0.2, max_iter=5, random_state=0, comm=alone()).fit(x)
    assert objective(model, digits(), 0.2) == pytest.approx(objective(alone_, digits(), 0.2), rel=0.02)
    assert_same_bits(world, model.components_)


@pytest.mark.parametrize("kind", BOTH)
def test_unused_atoms_become_samples(world, kind):
    """There are more atoms than directions, and the first are far from all samples."""
    x = np.abs(np.random.default_rng(0).standard_normal((40, 5)))
    (mine,) = shard(world, x)
    model = kind(9, alpha=0.1, max_iter=10, random_state=0, dict_init=-x[:2], positive_code=True).fit(mine)
    assert (np.linalg.norm(model.components_, axis=1) > 0.9).all()
    assert np.median(np.linalg.norm(model.inverse_transform(model.transform(x)) - x, axis=1)) < 0.4
    assert_same_bits(world, model.components_)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("algorithm", ["lasso_cd", "lasso_lars", "lars", "omp", "threshold"])
def test_codes_are_those_of_scikit_learn(world, kind, algorithm):
    (mine,) = shard(world, digits())
    model = kind(12, alpha=0.2, max_iter=3, random_state=0, transform_algorithm=algorithm, transform_alpha=0.1)
    x = digits()[:20]
    codes = model.set_params(transform_n_nonzero_coefs=4).fit(mine).transform(x)
    if algorithm == "lasso_cd":  # sparse_encode of scikit-learn 1.7 may stop 3e-3 from the optimum
        lasso = linear_model.Lasso(0.1 / x.shape[1], fit_intercept=False, tol=1e-12, max_iter=100_000)
        expected = np.array([lasso.fit(model.components_.T, sample).coef_ for sample in x])
    else:
        expected = decomposition.sparse_encode(
            x, model.components_, algorithm=algorithm, alpha=0.1, n_nonzero_coefs=4, max_iter=5000
        )
    np.testing.assert_allclose(codes, expected, atol=2e-3)
    np.testing.assert_allclose(model.inverse_transform(codes), codes @ model.components_)
    split = model.set_params(split_sign=True).transform(x)
    np.testing.assert_allclose(split, np.hstack([np.maximum(codes, 0), np.maximum(-codes, 0)]))
    np.testing.assert_allclose(model.inverse_transform(split), codes @ model.components_)
    assert len(model.get_feature_names_out()) == 24
    with pytest.raises(ValueError, match="components"):
        model.inverse_transform(codes)


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_negative(world, kind):
    (mine,) = shard(world, digits())
    model = kind(8, alpha=0.1, max_iter=5, random_state=0, positive_code=True, positive_dict=True).fit(mine)
    assert (model.components_ >= 0).all()
    codes = model.transform(digits())
    assert (codes >= 0).all()
    assert (codes > 0).any()


def test_ends_when_nothing_changes(world):
    (mine,) = shard(world, digits())
    model = MiniBatchDictionaryLearning(4, alpha=0.5, max_iter=500, batch_size=24, random_state=0).fit(mine)
    assert model.n_iter_ < 400
    model = DictionaryLearning(4, alpha=0.5, max_iter=500, tol=1e-4, random_state=0).fit(mine)
    assert model.n_iter_ < 400


def test_codes_that_are_not_optimal(world):
    (mine,) = shard(world, digits())
    model = DictionaryLearning(12, alpha=0.05, max_iter=2, transform_max_iter=1, random_state=0)
    if world.rank == 0:
        with pytest.warns(ConvergenceWarning, match="transform_max_iter"):
            model.fit(mine)
    else:
        model.fit(mine)
    with pytest.warns(ConvergenceWarning, match="20 codes|1. codes"):
        model.transform(digits()[:20])


def test_what_a_model_file_holds(world):
    (mine,) = shard(world, digits())
    arrays = DictionaryLearning(5, alpha=0.2, max_iter=1).fit(mine)._contents()
    assert (arrays["kind"], arrays["alpha"], arrays["split_sign"]) == ("dictionary", 0.2, False)
    assert arrays["components"].shape == (5, 64)


BAD = {
    "NaN": (lambda x: x * np.nan, ValueError, "NaN"),
    "one feature less": (lambda x: x[:, 1:], ValueError, "features"),
    "a vector": (lambda x: x[0], ValueError, "2D array"),
    "complex": (lambda x: x * 1j, ValueError, "[Cc]omplex"),
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("what", BAD)
def test_what_one_rank_passes_is_wrong(world, kind, what):
    change, error, words = BAD[what]
    (mine,) = shard(world, digits())
    if world.size == 1 and what == "one feature less":
        return
    with pytest.raises(error, match=words):
        kind(4).fit(change(mine) if world.rank == world.size - 1 else mine)
    kind(4, max_iter=1).fit(mine)  # the ranks go on


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "parameters",
    [{"alpha": -1}, {"n_components": 0}, {"tol": -1}, {"max_iter": 0}, {"transform_algorithm": "omelette"},
     {"transform_alpha": -0.1}, {"dict_init": np.ones((3, 5))}],
    ids=str,
)  # fmt: skip
def test_what_parameters_must_be(world, kind, parameters):
    (mine,) = shard(world, digits())
    with pytest.raises((ValueError, MismatchError), match=next(iter(parameters))):
        kind(**(parameters if world.rank == world.size - 1 else {})).fit(mine)


@pytest.mark.parametrize("kind", BOTH)
def test_no_samples(world, kind):
    with pytest.raises(ValueError, match="0 sample"):
        kind().fit(np.ones((0, 3)))


def test_ranks_that_differ(world):
    if world.size == 1:
        return
    (mine,) = shard(world, digits())
    with pytest.raises(MismatchError, match="DictionaryLearning of"):
        DictionaryLearning(4, alpha=1.0 + world.rank).fit(mine)
    model = MiniBatchDictionaryLearning(4, alpha=0.2, max_iter=1, random_state=0).fit(mine)
    model.components_ = model.components_ + (world.rank == 1)
    with pytest.raises(MismatchError, match="after"):
        model.partial_fit(mine)
