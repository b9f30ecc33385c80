"""The benchmark of estimators, on a small part of its samples."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import linear_model, svm

from sfb.bench import estimators

pytestmark = pytest.mark.mpi


def test_rows(world, capsys):
    config = estimators.Config(problems=("digits", "sparse"), repeats=1, size=0.08)
    rows = estimators.run(world, config)
    assert [(row["problem"], row["estimator"]) for row in rows] == [
        ("digits", "logistic"), ("digits", "svc"), ("digits", "mlp"), ("sparse", "logistic"), ("sparse", "svc"),
    ]  # fmt: skip
    for row in rows:
        assert row["ranks"] == world.size
        assert row["seconds"] > 0
        assert row["theirs"] > 0
        if row["estimator"] != "mlp":
            assert abs(row["difference"]) < (1e-6 if row["estimator"] == "logistic" else 1e-2)
    if world.rank == 0:
        assert "sklearn(s)" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [2, 3])
def test_objectives(rng, classes):
    """That of logistic regression is least where its gradient vanishes; liblinear's is below those of others."""
    x = rng.standard_normal((50, 4))
    y = (x @ rng.standard_normal((4, classes))).argmax(axis=1)
    for name, model in (
        ("logistic", linear_model.LogisticRegression(tol=1e-8)),
        ("svc", svm.LinearSVC(C=0.01, multi_class="crammer_singer", tol=1e-8, max_iter=10**5)),
    ):
        model.fit(x, y)
        least = estimators._objective(name, model, x, y)
        for _ in range(20):
            other = type(model)()
            other.coef_ = model.coef_ + 1e-2 * rng.standard_normal(model.coef_.shape)
            other.intercept_ = model.intercept_ + 1e-2 * rng.standard_normal(model.intercept_.shape)
            assert estimators._objective(name, other, x, y) > least


def test_the_time_to_a_loss():
    fit = estimators._Fit(None, 10.0, 0.1, (0.9, 0.5, 0.3, 0.2, 0.1))
    assert fit.reaches(0.3) == pytest.approx(6.0)
    assert fit.reaches(0.0) == pytest.approx(10.0)
    assert estimators._Fit(None, 10.0, 0.1).reaches(0.5) == 10.0


def test_made_samples_have_rows_of_length_1():
    x, y = estimators.PROBLEMS["sparse"](0.05)
    np.testing.assert_allclose(np.asarray(x.multiply(x).sum(axis=1)).ravel(), 1)
    assert set(y) == set(range(4))
