import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import linear_model

from sfb.bench import lasso

pytestmark = pytest.mark.mpi


def test_all_reach_the_gap(world, capsys):
    config = lasso.Config(
        samples=40, features=60, support=5, ratios=(0.3,), candidates=("sfb", "scikit-learn"), iterations=1, warmups=1
    )
    rows = lasso.run(world, config)
    assert [row["library"] for row in rows] == ["sfb", "scikit-learn"]
    assert all(row["gap"] <= config.gap for row in rows)
    assert rows[0]["objective"] == pytest.approx(rows[1]["objective"], rel=1e-6)
    out = capsys.readouterr().out
    if world.rank == 0:
        assert all(line.startswith("#") or len(line.split()) == len(lasso.COLUMNS) for line in out.splitlines())


def test_neighbours_correlate():
    x, y = lasso.correlated(lasso.Config(samples=2000, features=5, correlation=0.8))
    assert (x.shape, y.shape) == ((2000, 5), (2000,))
    assert x.flags.f_contiguous
    np.testing.assert_allclose(np.diag(np.corrcoef(x.T), 1), 0.8, atol=0.05)


def test_the_gap_is_that_of_scikit_learn():
    x, y = lasso.correlated(lasso.Config(samples=50, features=20))
    model = linear_model.Lasso(0.5, tol=1e-3).fit(x, y)
    objective, gap = lasso.gap_of(x, y, model.coef_, model.intercept_, 0.5)
    assert gap * objective == pytest.approx(model.dual_gap_, rel=1e-6, abs=1e-12)
