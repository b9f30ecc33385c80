"""Factors of ratings on several ranks, against direct solutions in NumPy."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse

pytest.importorskip("sklearn")

from sklearn.exceptions import ConvergenceWarning

from sfb import MismatchError
from sfb.models import MatrixFactorization
from sfb.models.ranks import Ranks
from sfb.models.ratings.alternating import Alternating, Problem
from sfb.models.ratings.descent import Descent
from sfb.models.ratings.ratings import read

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]

USERS, ITEMS, FACTORS = 23, 17, 3


def alone():
    from mpi4py import MPI

    return MPI.COMM_SELF


@cache
def ratings(implicit=False):
    """Return a mask of what was rated, and the ratings; a user and an item have none."""
    rng = np.random.default_rng(2)
    rated = rng.random((USERS, ITEMS)) < 0.6
    rated[5], rated[:, 3] = False, False
    x = rng.integers(1, 6, (USERS, ITEMS)) if implicit else rng.normal(3, 1, (USERS, ITEMS))
    return rated, np.where(rated, x, 0.0)


def matrix(world, implicit=False, among=None, dtype=float):
    """Return the ratings of every P-th user; none if this rank is not ``among`` those that have any."""
    rated, x = ratings(implicit)
    among = list(range(world.size)) if among is None else among
    own = slice(among.index(world.rank), None, len(among)) if world.rank in among else slice(0)
    rows, columns = np.nonzero(rated[own])
    return sparse.csr_array((x[own][rows, columns].astype(dtype), (rows, columns)), shape=rated[own].shape)


def in_order(world, own):
    """Return the rows of all ranks in the order of the whole matrix."""
    parts, whole = world.allgather(own), np.zeros((USERS, own.shape[1]))
    for rank, part in enumerate(parts):
        whole[rank :: world.size] = part
    return whole


def problem(**options):
    values = {"strength": 0.3, "weighted": True, "biased": False, "confidence": 0.0, "steps": 0, "mean": 0.0}
    return Problem(**{**values, **options})


def direct(rated, x, others, p):
    """Return the least-squares fit of each row, by the formula."""
    found = np.zeros((len(rated), others.shape[1]))
    for row, known in enumerate(rated):
        if not known.any():
            continue
        f, v = others[known], x[row, known]
        if p.biased:
            v = v - p.mean - f[:, -1]
            f = np.hstack([f[:, :-1], np.ones((len(f), 1))])
        penalty = p.strength * (known.sum() if p.weighted else 1) * np.eye(f.shape[1])
        if p.confidence:
            weights = np.where(known, 1 + p.confidence * x[row], 1)
            found[row] = np.linalg.solve((others.T * weights) @ others + penalty, others.T @ (weights * known))
        else:
            found[row] = np.linalg.solve(f.T @ f + penalty, f.T @ v)
    return found


def objective(rated, x, users, items, p):
    predicted = users @ items.T
    if p.biased:
        predicted = users[:, :-1] @ items[:, :-1].T + users[:, -1:] + items[:, -1] + p.mean
    weights = rated * 1.0 if not p.confidence else np.where(rated, 1 + p.confidence * x, 1)
    value = (weights * ((x if not p.confidence else rated) - predicted) ** 2).sum()
    for factors, counts in ((users, rated.sum(axis=1)), (items, rated.sum(axis=0))):
        value += p.strength * ((counts if p.weighted else counts > 0) * (factors**2).sum(axis=1)).sum()
    return value


CASES = {
    "weighted": problem(),
    "plain": problem(weighted=False),
    "biased": problem(biased=True, mean=2.5),
    "implicit": problem(confidence=0.5),
    "implicit, plain": problem(confidence=2.0, weighted=False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [0, 60])
def test_epochs_are_those_of_the_formula(world, case, steps):
    p = CASES[case]
    rated, x = ratings(bool(p.confidence))
    own = read(matrix(world, bool(p.confidence)), duplicates="error", limits=None, implicit=bool(p.confidence))
    start = np.random.default_rng(1).normal(size=(ITEMS, FACTORS + p.biased))
    with Ranks(world) as ranks:
        als = Alternating(ranks, own, Problem(**{**vars(p), "steps": steps}), start.copy())
        items, before = start, np.inf
        for _ in range(3):
            als.epoch()
            users = direct(rated, x, items, p)
            items = direct(rated.T, x.T, users, p)
            np.testing.assert_allclose(in_order(world, als.users), users, atol=1e-7)
            np.testing.assert_allclose(als.items, items, atol=1e-7)
            assert_same_bits(world, als.items)
            value = als.objective()
            np.testing.assert_allclose(value, objective(rated, x, users, items, p), rtol=1e-7)
            assert value < before
            before = value


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gradient_steps_find_the_minimum_of_the_objective(world, weighted, biased):
    """SGD with short steps ends where ALS ends; from the same start, as there are many minima."""
    p = problem(strength=0.05 if weighted else 0.5, weighted=weighted, biased=biased, mean=2.5 if biased else 0.0)
    rated, x = ratings()
    own = read(matrix(world), duplicates="error", limits=None, implicit=False)
    with Ranks(world) as ranks:
        als = Alternating(ranks, own, p, np.random.default_rng(1).normal(size=(ITEMS, FACTORS + biased)))
        for _ in range(300):
            als.epoch()
        best = als.objective()
        with Descent(ranks, own, p, als.users.copy(), als.items.copy(), rate=0.01, seed=1, check=True) as sgd:
            for _ in range(30):
                sgd.epoch()
            items = sgd.items()
            assert_same_bits(world, items)
            found = objective(rated, x, in_order(world, sgd.users), items, p)
        assert best <= found * (1 + 1e-6)
        assert found < best * 1.02


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 4, 9])
@pytest.mark.parametrize("sweeps", [1, 2])
def test_every_block_is_on_one_rank_at_a_time(world, blocks, items, sweeps):
    """Each block is on one rank in each step, and on every rank once a sweep."""
    visits = []

    class Watched(Descent):
        def push(self, block):
            visits.append((block.step, block.number))
            super().push(block)

    own = read(sparse.coo_array(np.ones((2, items))), duplicates="error", limits=None, implicit=False)
    users, start = np.zeros((2, 2)), np.ones((items, 2))
    with (
        Ranks(world) as ranks,
        Watched(ranks, own, problem(), users, start, rate=0.1, seed=0, blocks=blocks, check=True) as sgd,
    ):
        for _ in range(sweeps):
            visits.clear()
            sgd.epoch()
            everyone = world.allgather(list(visits))
            assert all(sorted(number for _, number in each) == list(range(world.size * blocks)) for each in everyone)
            together = [visit for each in everyone for visit in each]
            assert len(set(together)) == len(together)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "als"},
        {"solver": "als", "subproblem": "cg"},
        {"solver": "sgd", "max_iter": 60, "regularization": 0.02},
        {"solver": "sgd", "max_iter": 60, "regularization": 0.02, "blocks_per_rank": 2, "extra_passes": 2},
    ],
    ids=["als", "cg", "sgd", "sgd with extra passes"],
)
def test_the_error_of_ratings_held_out_is_the_noise(world, options):
    rng = np.random.default_rng(4)
    users, items, factors, noise = 500, 400, 5, 0.5
    p, q = rng.normal(size=(users, factors)), rng.normal(size=(items, factors))
    true = 3 + p @ q.T / factors**0.5
    seen = rng.random((users, items)) < 0.9
    own = slice(world.rank, None, world.size)
    x = (true + noise * rng.normal(size=true.shape))[own].astype(np.float32)
    rows, columns = np.nonzero(seen[own])
    others, of = np.nonzero(~seen[own])
    known = sparse.csr_array((x[rows, columns], (rows, columns)), shape=x.shape)
    model = MatrixFactorization(factors, random_state=0, debug=True, **{"regularization": 0.01, **options}).fit(known)
    assert model.user_factors_.dtype == np.float32
    errors = model.predict(others, of) - x[others, of]
    total, count = np.sum(world.allgather((float(errors @ errors), len(errors))), axis=0)
    assert np.sqrt(total / count) < 1.02 * noise
    assert_same_bits(world, model.item_factors_)


@pytest.mark.parametrize("feedback", ["explicit", "implicit"])
def test_the_same_factors_for_any_number_of_ranks(world, feedback):
    implicit = feedback == "implicit"

    def fit(comm, x):
        return MatrixFactorization(FACTORS, feedback=feedback, max_iter=5, tol=0, random_state=1, comm=comm).fit(x)

    together = fit(world, matrix(world, implicit))
    one = fit(alone(), matrix(alone(), implicit))
    np.testing.assert_allclose(together.item_factors_, one.item_factors_, atol=1e-8)
    np.testing.assert_allclose(in_order(world, together.user_factors_), one.user_factors_, atol=1e-8)
    np.testing.assert_allclose(together.item_biases_, one.item_biases_, atol=1e-8)
    assert together.mean_ == pytest.approx(one.mean_)
    assert together.n_iter_ == 5
    assert together.objective_ is None
    assert not one.user_factors_[5].any()
    assert not one.item_factors_[3].any()


def test_the_same_bits_again(world):
    found = [
        MatrixFactorization(FACTORS, solver="sgd", max_iter=3, random_state=1).fit(matrix(world)) for _ in range(2)
    ]
    for name in ("user_factors_", "item_factors_", "user_biases_", "item_biases_"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


@pytest.mark.parametrize("solver", ["als", "sgd"])
def test_ranks_without_users(world, solver):
    among = [world.size - 1]
    model = MatrixFactorization(2, solver=solver, max_iter=4, random_state=0).fit(matrix(world, among=among))
    assert_same_bits(world, model.item_factors_)
    assert len(model.user_factors_) == (USERS if world.rank in among else 0)
    assert model.recommend(np.arange(0), 3)[0].shape == (0, 3)


@pytest.mark.parametrize("solver", ["als", "sgd"])
def test_the_best_epoch_of_ratings_held_out(world, solver):
    """The factors are those of the epoch with the lowest error, whether it was the last or not."""
    x = matrix(world)
    model = MatrixFactorization(
        8, solver=solver, regularization=0.05, early_stopping=True, validation_fraction=0.3, max_iter=20, random_state=0
    ).fit(x)
    scores = model.validation_scores_
    assert len(scores) == model.n_iter_ <= 20
    assert_same_bits(world, np.array(scores))
    assert_same_bits(world, model.item_factors_)
    with Ranks(world) as ranks:
        ratings_, held_out = model._divide(ranks, read(x, duplicates="error", limits=None, implicit=False))
        assert len(ratings_.values) + len(held_out.values) == x.nnz
        errors = model.predict(held_out.rows, held_out.columns) - held_out.values
        total, count = ranks.sum(np.array([errors @ errors, len(errors)]))
    assert np.sqrt(total / count) == pytest.approx(min(scores))


def test_predictions_and_recommendations(world):
    x = matrix(world)
    model = MatrixFactorization(FACTORS, max_iter=10, rating_range=(-10, 20), random_state=0).fit(x)
    whole = model.user_factors_ @ model.item_factors_.T + model.mean_
    whole += model.user_biases_[:, np.newaxis] + model.item_biases_
    users = np.arange(len(whole))
    np.testing.assert_allclose(model.predict(users[:, np.newaxis], np.arange(ITEMS)), whole)
    best, values = model.recommend(users, 4, exclude=x)
    open_ = np.where(x.toarray() != 0, -np.inf, whole)
    np.testing.assert_allclose(values, -np.sort(-open_, axis=1)[:, :4])
    np.testing.assert_allclose(np.take_along_axis(open_, best, axis=1), values)
    if len(users):
        alone_, _ = model.recommend(0, 4, exclude=x)
        np.testing.assert_array_equal(alone_, best[0])
        limited = model.set_params(rating_range=(2.9, 3.1)).predict(users, 0)
        np.testing.assert_allclose(limited, whole[:, 0].clip(2.9, 3.1))
    with pytest.raises(ValueError, match="users must be whole numbers from 0"):
        model.predict([USERS], [0])
    with pytest.raises(ValueError, match="items must be whole numbers from 0"):
        model.predict([], [-1])


@pytest.mark.parametrize("feedback", ["explicit", "implicit"])
def test_factors_of_other_users(world, feedback):
    implicit = feedback == "implicit"
    model = MatrixFactorization(FACTORS, feedback=feedback, max_iter=10, confidence=0.5, random_state=0)
    model.fit(matrix(world, implicit))
    p = problem(strength=0.05, biased=not implicit, confidence=0.5 if implicit else 0.0, mean=model.mean_)
    items = model.item_factors_ if implicit else np.column_stack([model.item_factors_, model.item_biases_])
    rated, x = ratings(implicit)
    expected = direct(rated, x, items, p)[:, :FACTORS]
    np.testing.assert_allclose(model.transform(matrix(alone(), implicit)), expected, atol=1e-8)


def test_errors_of_ratings(world):
    x = matrix(world)
    model = MatrixFactorization(FACTORS, max_iter=5, random_state=0).fit(x)
    if x.nnz:
        rows, columns = x.nonzero()
        errors = model.predict(rows, columns) - x.data
        assert model.rmse(x) == pytest.approx(np.sqrt(np.mean(errors**2)))
        assert model.score(x) == -model.rmse(x)
    with pytest.raises(ValueError, match="an error needs a rating"):
        model.rmse(sparse.csr_array((len(model.user_factors_) or 1, ITEMS)))


def test_ratings_in_several_forms(world):
    x = matrix(world)
    expected = MatrixFactorization(2, max_iter=3, tol=0, random_state=0).fit(x)
    users, items = sparse.coo_array(x).coords
    if not world.rank:  # the largest item that is rated has to be known
        assert items.max() == ITEMS - 1
    for form in (sparse.coo_array(x), sparse.csc_array(x), (users, items, x.data)):
        found = MatrixFactorization(2, max_iter=3, tol=0, random_state=0).fit(form)
        np.testing.assert_array_equal(found.item_factors_, expected.item_factors_)
        assert found.n_features_in_ == ITEMS
    dense = np.arange(12.0).reshape(4, 3)
    found = MatrixFactorization(1, max_iter=3, tol=0, random_state=0, comm=alone()).fit(dense)
    stored = sparse.coo_array((dense.ravel(), np.indices(dense.shape).reshape(2, -1)), shape=dense.shape)
    other = MatrixFactorization(1, max_iter=3, tol=0, random_state=0, comm=alone()).fit(stored)  # with its zero
    np.testing.assert_array_equal(found.item_factors_, other.item_factors_)


@pytest.mark.parametrize(("policy", "value"), [("mean", 3.0), ("sum", 6.0), ("last", 4.0)])
@pytest.mark.parametrize("form", ["tuple", "coo", "csr"])
def test_duplicates(policy, value, form):
    users, items, values = np.array([1, 0, 1]), np.array([2, 0, 2]), np.array([2.0, 5.0, 4.0])
    x = (users, items, values)
    if form == "coo":
        x = sparse.coo_array((values, (users, items)))
    elif form == "csr":
        x = sparse.csr_array((values[[1, 0, 2]], np.array([0, 2, 2]), np.array([0, 1, 3])), shape=(2, 3))
    found = read(x, duplicates=policy, limits=None, implicit=False)
    np.testing.assert_array_equal(found.starts, [0, 1, 2])
    np.testing.assert_array_equal(found.columns, [0, 2])
    np.testing.assert_array_equal(found.values, [5, value])
    with pytest.raises(ValueError, match="1 ratings are duplicates, first of user 1 for item 2"):
        read(x, duplicates="error", limits=None, implicit=False)


def test_steps_that_are_too_long_are_undone(world):
    """The rate falls until epochs no longer diverge."""
    model = MatrixFactorization(
        FACTORS, solver="sgd", learning_rate=1000.0, max_iter=40, regularization=0.02, random_state=0
    )
    x = matrix(world)
    model.fit(x)
    assert np.isfinite(model.item_factors_).all()
    if x.nnz:
        assert model.rmse(x) < 1.0


def test_max_iter_is_said(world):
    model = MatrixFactorization(2, max_iter=1, random_state=0)
    if world.rank == 0:
        with pytest.warns(ConvergenceWarning, match="max_iter=1"):
            model.fit(matrix(world))
    else:
        model.fit(matrix(world))


BAD = {
    "NaN": ({}, (0, 1, np.nan), "NaN"),
    "range": ({"rating_range": (-9, 9)}, (0, 1, 9.5), "ratings must be from -9 to 9, user 0 has 9.5 for item 1"),
    "negative feedback": ({"feedback": "implicit"}, (0, 1, -1.0), "Negative values in data"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_ratings_on_one_rank_are_an_error_on_all(world, case):
    options, (user, item, value), message = BAD[case]
    x = np.abs(matrix(alone()).toarray())
    if world.rank == world.size - 1:
        x[user, item] = value
    with pytest.raises(ValueError, match=message):
        MatrixFactorization(2, **options).fit(x)


def test_other_errors_on_all_ranks(world):
    x, last = matrix(world), world.rank == world.size - 1
    again = (np.array([0, 0]), np.array([1, 1]), np.array([2.0, 3.0]))
    once = (np.array([0, 0]), np.array([1, 2]), np.array([2.0, 3.0]))
    with pytest.raises(ValueError, match="duplicates"):
        MatrixFactorization(2).fit(again if last else once)
    for wrong, message in (
        ((np.array([0.5]), np.array([1]), np.array([2.0])), "users must be whole numbers"),
        ((np.array([0]), np.array([-1]), np.array([2.0])), "items must be whole numbers"),
        ((np.array([0]), np.array([1, 2]), np.array([2.0])), "rows of one length"),
        ((np.array([0]), np.array([1])), "a tuple of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            MatrixFactorization(2).fit(wrong if last else once)
    with pytest.raises(ValueError, match="no rank has a rating"):
        MatrixFactorization(2).fit(sparse.csr_array((3, 4)))
    for options in (
        {"regularization": 0},
        {"feedback": "implicit", "solver": "sgd"},
        {"rating_range": (3, 1)},
        {"validation_fraction": 1},
        {"solver": "magic"},
    ):
        with pytest.raises(ValueError, match=list(options)[-1]):
            MatrixFactorization(**options).fit(x)
    with pytest.raises(ValueError, match="early_stopping needs more ratings"):
        MatrixFactorization(2, early_stopping=True, validation_fraction=1e-9).fit(x)
    if world.size > 1:
        with pytest.raises(ValueError, match=r"items on this rank, and 17 on others"):
            MatrixFactorization(2).fit(x[:, :-1] if last else x)
        with pytest.raises(MismatchError, match="n_components"):
            MatrixFactorization(3 if last else 2).fit(x)
