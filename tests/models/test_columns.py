"""Columns of all samples, which ranks make of the samples that they hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("sklearn")

from sfb.models.linear import columns
from sfb.models.linear.columns import Copies, by_features, by_samples
from sfb.models.ranks import Ranks

pytestmark = pytest.mark.mpi

HEIGHT, WIDTH = 23, 14


def matrix():
    rng = np.random.default_rng(7)
    return np.where(rng.random((HEIGHT, WIDTH)) < 0.5, rng.normal(2, 1, (HEIGHT, WIDTH)), 0)


def values_of(found):
    """Return the columns of this rank as an array, centred."""
    if not found.is_sparse:
        return found.form.values.T
    form = found.form
    return sparse.csc_array((form.data, form.rows, form.starts), (found.samples, found.count)).toarray() - found.means


@pytest.fixture(params=[1 << 28, 200], ids=["one piece", "many pieces"])
def piece(request, monkeypatch):
    monkeypatch.setattr(columns, "_PIECE", request.param)


@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sparse.csr_matrix, sparse.csc_array])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_columns_of_all_samples(world, piece, form, centred, dtype):
    x = matrix().astype(dtype)
    cuts = np.linspace(0, HEIGHT, world.size).astype(int)  # the last rank has no samples, if there are several
    cuts = np.append(cuts, HEIGHT) if world.size > 1 else np.array([0, HEIGHT])
    mine = form(x[cuts[world.rank] : cuts[world.rank + 1]])
    with Ranks(world) as ranks:
        found = by_samples(ranks, mine, centred=centred)
    assert (found.samples, found.total) == (HEIGHT, WIDTH)
    assert sum(world.allgather(found.count)) == WIDTH
    own = slice(found.first, found.first + found.count)
    expected = x.astype(float) - x.astype(float).mean(axis=0) * centred
    np.testing.assert_allclose(values_of(found), expected[:, own], atol=1e-6)
    np.testing.assert_allclose(found.squares, (expected[:, own] ** 2).sum(axis=0), rtol=1e-5)
    assert found.squares.dtype == found.means.dtype == np.float64


def test_columns_by_features_are_those_that_are_passed(world):
    x = matrix()
    mine = x[:, world.rank :: world.size]
    with Ranks(world) as ranks:
        for form in (np.asarray, sparse.csr_matrix):
            found = by_features(ranks, form(mine), centred=False)
            np.testing.assert_array_equal(values_of(found), mine)
            assert found.first == sum(world.allgather(mine.shape[1])[: world.rank])
    np.testing.assert_array_equal(x, matrix())  # what users pass stays as it is


@pytest.mark.parametrize("form", [np.asarray, sparse.csc_array])
def test_copies_of_columns(world, form, monkeypatch):
    monkeypatch.setattr(columns, "_KEPT", 5)
    x = matrix()
    with Ranks(world) as ranks:
        found = by_features(ranks, form(np.array_split(x, world.size, axis=1)[world.rank]), centred=True)
        copies = Copies(ranks, found)
        for ids in ([1, 5, 13], [0, 1, 2, 3, 5, 8], [4], [4, 13], np.arange(WIDTH)):
            given, places = copies.of(np.array(ids))
            assert len(places) == len(ids)
            for j, place in zip(ids, places, strict=True):
                if found.is_sparse:
                    part = slice(given.starts[place], given.starts[place + 1])
                    column = np.zeros(HEIGHT)
                    column[given.rows[part]] = given.data[part]
                    column -= given.means[place]
                else:
                    column = given.values[place]
                np.testing.assert_allclose(column, x[:, j] - x[:, j].mean(), atol=1e-12)
