"""Metric learning as a model: loss, factors, score."""

import numpy as np
import pytest
from scipy import sparse

from sfb.models.metrics.dml import Metric, dml, pair_loss
from sfb.models.metrics.pairs import NOBODY


def samples(rng, count=40, features=6, classes=3):
    y = rng.integers(0, classes, count)
    x = rng.standard_normal((count, features))
    x[:, 0] += 2 * y
    return x, y


def model(x, y, **options):
    found = Metric(x.shape[1], components=4, dtype=np.float64, **options)
    found.initialise(x, y)
    return found


def test_factors_are_those_of_the_paper(rng):
    """Xie et al., UAI 2016: u = 2Ld for a similar pair, −2λLd for a dissimilar one within the margin, v = d."""
    metric = Metric(3, components=2, dissimilar_weight=5.0, dtype=np.float64)
    metric.components[:] = [[1.0, 0, 0], [0, 0.5, 0]]
    x = np.array([[0, 0, 0], [0.5, 0.2, 1], [0.1, 0.4, 2], [3.0, 0, 0]])
    rows = np.array([[1, 0], [2, 0], [3, 0]])  # similar, dissimilar and near, dissimilar and far
    loss, factors = metric.of_pairs(x, rows, np.array([True, False, False]), 10)
    d = x[1:]
    projected = d @ metric.components.T
    np.testing.assert_allclose(factors.v, d)
    np.testing.assert_allclose(factors.u, projected * np.array([[2.0], [-10.0], [0.0]]) / 10)
    square = (projected**2).sum(axis=1)
    assert loss == pytest.approx(square[0] + 5 * (1 - square[1]))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_gradients_are_central_differences(rng, form):
    x, y = samples(rng)
    metric = model(x, y, candidates=3)
    rows = metric.examples(y, rng)[::2]
    loss, gradients = metric.gradients(form(x), y, rows, 25)
    ((parameter, factors),) = list(gradients)
    assert parameter is metric.parameters[0]
    assert loss == pytest.approx(metric.objective(form(x), y, rows))
    gradient, step = factors.dense(), 1e-6
    for r, c in np.ndindex(gradient.shape):
        values = []
        for sign in (1, -1):
            metric.components[r, c] += sign * step
            values.append(metric.objective(x, y, rows))
            metric.components[r, c] -= sign * step
        assert (values[0] - values[1]) / (2 * step) / 25 == pytest.approx(gradient[r, c], rel=1e-4, abs=1e-6)


def test_no_examples(rng):
    x, y = samples(rng)
    metric = model(x, y)
    loss, gradients = metric.gradients(x, y, np.empty((0, 17), np.int64), 8)
    ((_, factors),) = list(gradients)
    assert loss == 0
    assert len(factors) == 0
    assert not pair_loss(np.empty((0, 4)), np.empty(0, bool), 1.0)[0].size


def test_dissimilar_pairs_are_at_1_in_the_beginning(rng):
    x, y = samples(rng)
    metric = model(1000 * x, y, candidates=1)
    rows = np.concatenate([metric.examples(y, rng) for _ in range(50)])
    pairs, similar = metric.pairs_of(1000 * x, rows)
    apart = metric.transform(1000 * x)[pairs[~similar]]
    assert np.mean(np.sum((apart[:, 0] - apart[:, 1]) ** 2, axis=1)) == pytest.approx(1, rel=0.2)


def test_steps_lower_the_objective(rng):
    x, y = samples(rng)
    metric = model(x, y, dissimilar_weight=2.0)
    rows = metric.examples(y, rng)
    before = metric.objective(x, y, rows)
    for _ in range(60):
        _, gradients = metric.gradients(x, y, rows, len(rows))
        for parameter, factors in gradients:
            parameter.array -= 0.05 * factors.dense()
    assert metric.objective(x, y, rows) < 0.8 * before


def test_score_leaves_the_sample_out(rng):
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, y = samples(rng, 700)
    metric = model(x, y)
    z = metric.transform(x)
    _, found = neighbors.NearestNeighbors(n_neighbors=2).fit(z).kneighbors(z)
    assert metric.score(x, y) == (np.sum(y[found[:, 1]] == y), 700)
    assert metric.score(x[:1], y[:1]) == (0, 1)


def test_a_sample_without_peers_has_one_pair(rng):
    x, y = samples(rng)
    y[5] = 8
    metric = model(x, y, candidates=2)
    rows = metric.examples(y, rng)
    assert (rows == NOBODY).sum() == 2
    pairs, similar = metric.pairs_of(x, rows)
    assert similar.sum() == 39
    assert len(pairs) == 79


def test_what_is_saved(rng):
    x, y = samples(rng)
    metric = dml(6, 3, components=4, seed=3)
    metric.initialise(x.astype(np.float32), y)
    saved = metric.save()
    assert saved["kind"] == "metric"
    np.testing.assert_array_equal(saved["components"], metric.components)
    assert saved["components"].dtype == np.float32


@pytest.mark.parametrize("wrong", [{"components": 0}, {"candidates": 0}, {"dissimilar_weight": 0.0}], ids=str)
def test_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Metric(5, **wrong)
