"""Partners of samples, drawn from labels."""

import numpy as np
import pytest

from sfb.models.metrics import pairs


@pytest.mark.parametrize("count", [1, 7])
def test_candidates_have_the_right_labels(rng, count):
    y = rng.integers(0, 4, 50)
    y[17] = 9  # the only one of its class
    rows = pairs.candidates(y, count, rng)
    assert sorted(rows[:, 0]) == list(range(50))
    for sample, *others in rows:
        similar, different = np.array(others[:count]), np.array(others[count:])
        if sample == 17:
            assert (similar == pairs.NOBODY).all()
        else:
            assert (y[similar] == y[sample]).all()
            assert (similar != sample).all()
        assert (y[different] != y[sample]).all()


def test_every_partner_is_as_likely(rng):
    y = np.array([0, 0, 0, 1, 1, 2])
    rows = np.concatenate([pairs.candidates(y, 50, rng) for _ in range(40)])
    mine = rows[rows[:, 0] == 1, 1:]
    assert set(mine[:, :50].ravel()) == {0, 2}
    shares = np.bincount(mine[:, 50:].ravel(), minlength=6) / mine[:, 50:].size
    np.testing.assert_allclose(shares, [0, 0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.05)


def test_nobody_is_of_another_class(rng):
    rows = pairs.candidates(np.zeros(5), 3, rng)
    assert (rows[:, 4:] == pairs.NOBODY).all()
    assert pairs.candidates(np.empty(0), 3, rng).shape == (0, 7)


def test_the_nearest_candidates(rng):
    y, z = rng.integers(0, 3, 30), rng.standard_normal((30, 4))
    y[3] = 7
    rows = pairs.candidates(y, 5, rng)
    found, similar = pairs.nearest(z[rows], rows)
    assert len(found) == 59
    assert similar.sum() == 29  # sample 3 has no similar partner
    for (sample, partner), alike in zip(found, similar, strict=True):
        row = rows[rows[:, 0] == sample][0]
        candidates = row[1:6] if alike else row[6:]
        distances = np.linalg.norm(z[candidates] - z[sample], axis=1)
        assert np.linalg.norm(z[partner] - z[sample]) == pytest.approx(distances.min())
