"""Sparse coding as a model: codes, loss, factors, score."""

import numpy as np
import pytest
from scipy import sparse

from sfb.models.codes.coding import Dictionary, coding_loss, dictionary, encode
from sfb.optim import Proximal


def model(rng, samples=30, features=8, components=12, **options):
    x = rng.standard_normal((samples, features))
    found = Dictionary(features, components=components, dtype=np.float64, **{"alpha": 0.4, **options})
    found.initialise(x, np.zeros(samples))
    return found, x


def rows_of(x):
    return np.arange(len(x))[:, np.newaxis]


def test_atoms_begin_as_samples(rng):
    found, x = model(rng)
    np.testing.assert_allclose(np.linalg.norm(found.atoms, axis=1), 1)
    cosines = found.atoms @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    np.testing.assert_allclose(cosines.max(axis=1), 1)
    few, _ = model(rng, samples=3)
    np.testing.assert_allclose(np.linalg.norm(few.atoms, axis=1), 1)


def test_codes_minimise_the_loss(rng):
    found, x = model(rng)
    codes = found.codes(x)
    slopes = (x - codes @ found.atoms) @ found.atoms.T
    np.testing.assert_allclose(slopes[codes > 0], 0.4, atol=0.02)
    np.testing.assert_allclose(slopes[codes < 0], -0.4, atol=0.02)
    assert (abs(slopes) < 0.42).all()
    better, undone = encode(x, found.atoms, 0.4, codes=codes.copy(), tol=1e-12, max_iter=10000)
    assert undone == 0
    excess = coding_loss(x, codes, found.atoms, 0.4) - coding_loss(x, better, found.atoms, 0.4)
    assert 0 <= excess <= 1e-6 * (x**2).sum()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_gradients_are_central_differences(rng, form):
    found, x = model(rng)
    loss, gradients = found.gradients(form(x), np.zeros(30), rows_of(x)[::3], 25)
    ((parameter, factors),) = list(gradients)
    assert parameter is found.parameters[0]
    assert (parameter.decays, parameter.radius) == (False, 1.0)
    some = x[::3]
    codes = found.codes(some)
    assert loss == pytest.approx(coding_loss(some, codes, found.atoms, 0.4))
    assert found.objective(form(x), np.zeros(30), rows_of(x)[::3]) == pytest.approx(loss)
    gradient, step = factors.dense(), 1e-6
    for k, c in np.ndindex(gradient.shape):
        values = []
        for sign in (1, -1):
            atoms = found.atoms.copy()
            atoms[k, c] += sign * step
            values.append(coding_loss(some, codes, atoms, 0.4))
        assert (values[0] - values[1]) / (2 * step) / 25 == pytest.approx(gradient[k, c], abs=1e-6)


def test_projected_steps_lower_the_objective(rng):
    found, x = model(rng)
    before = found.objective(x, np.zeros(30), rows_of(x))
    rule = Proximal(found.atoms, lr=0.5, radius=found.parameters[0].radius)
    for _ in range(30):
        _, gradients = found.gradients(x, np.zeros(30), rows_of(x), len(x))
        for _, factors in gradients:
            rule.step(factors.dense())
    assert found.objective(x, np.zeros(30), rows_of(x)) < 0.95 * before
    assert (np.linalg.norm(found.atoms, axis=1) <= 1 + 1e-12).all()


def test_no_samples(rng):
    found, x = model(rng)
    loss, gradients = found.gradients(x, np.zeros(30), np.empty((0, 1), np.int64), 8)
    ((_, factors),) = list(gradients)
    assert loss == 0
    assert len(factors) == 0


def test_score_is_the_explained_part(rng):
    found, x = model(rng)
    rest = x - found.codes(x) @ found.atoms
    explained, total = found.score(sparse.csr_matrix(x), np.zeros(30))
    assert explained / total == pytest.approx(1 - (rest**2).sum() / (x**2).sum())


def test_what_is_saved():
    found = dictionary(8, 0, components=5, alpha=0.3, seed=1)
    saved = found.save()
    assert (saved["kind"], saved["alpha"], saved["components"].shape) == ("dictionary", 0.3, (5, 8))


@pytest.mark.parametrize("wrong", [{"components": 0}, {"alpha": -1.0}, {"alpha": np.nan}], ids=str)
def test_refuses(wrong):
    with pytest.raises(ValueError, match=r"atom|alpha"):
        Dictionary(5, **wrong)
