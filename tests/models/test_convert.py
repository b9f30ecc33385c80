"""Estimators of scikit-learn and of this library from each other."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import linear_model, neural_network, svm
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.tree import DecisionTreeClassifier

import sfb.models
from sfb.models import from_sklearn, to_sklearn

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

METHODS = ("predict", "predict_proba", "decision_function")
OURS = {
    "LogisticRegression": lambda: sfb.models.LogisticRegression(C=0.3),
    "lasso": lambda: sfb.models.LogisticRegression(l1_ratio=1.0),
    "sgd": lambda: sfb.models.LogisticRegression(solver="sgd"),
    "LinearSVC": lambda: sfb.models.LinearSVC(C=0.1),
    "MLPClassifier": lambda: sfb.models.MLPClassifier((6,), "tanh", solver="adamw", learning_rate="cosine", max_iter=3),
    "MLPRegressor": lambda: sfb.models.MLPRegressor((6,), solver="sgd", max_iter=3),
}
THEIRS = {
    "LogisticRegression": lambda: linear_model.LogisticRegression(C=0.3),
    "lasso": lambda: linear_model.LogisticRegression(l1_ratio=1.0, solver="saga"),
    "no penalty": lambda: linear_model.LogisticRegression(C=np.inf),
    "LinearSVC": lambda: svm.LinearSVC(C=0.1),
    "MLPClassifier": lambda: neural_network.MLPClassifier((6,), "logistic", max_iter=3),
    "MLPRegressor": lambda: neural_network.MLPRegressor(hidden_layer_sizes=(6,), max_iter=3),
    "lbfgs": lambda: neural_network.MLPRegressor(hidden_layer_sizes=(6,), solver="lbfgs", max_iter=3),
}


def samples(classes, name):
    x, y = load_digits(return_X_y=True, n_class=classes)
    y = y[:90]
    return x[:90] / 16, y.astype(float) if "Regressor" in name or name == "lbfgs" else np.array(list("abcdefgh"))[y]


def same(a, b, x):
    for method in METHODS:
        if hasattr(a, method) and hasattr(b, method):
            found, expected = getattr(a, method)(x), getattr(b, method)(x)
            if method == "predict":
                assert found.dtype == expected.dtype
            if found.dtype.kind == "U":
                assert (found == expected).all()
            else:
                np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", OURS)
def test_to_scikit_learn(name, classes):
    x, y = samples(classes, name)
    ours = OURS[name]().fit(x, y)
    theirs = to_sklearn(ours)
    assert type(theirs).__module__.startswith("sklearn.")
    same(ours, theirs, x)
    same(from_sklearn(theirs), ours, x)
    assert theirs.fit(x, y).score(x, y) > 0.2 or "MLP" in name  # it can be fitted anew


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", THEIRS)
def test_from_scikit_learn(name, classes, tmp_path):
    x, y = samples(classes, name)
    theirs = THEIRS[name]().fit(x, y)
    ours = from_sklearn(theirs)
    assert type(ours).__module__.startswith("sfb.")
    same(ours, theirs, x)
    assert getattr(ours, "C", None) == getattr(theirs, "C", None)
    sfb.models.save(tmp_path / "m.npz", ours)
    loaded = sfb.models.load(tmp_path / "m.npz")
    assert (loaded.predict(x) == theirs.predict(x)).mean() > 0.99 or y.dtype.kind == "f"
    if "solver" not in ours.get_params() or ours.solver != "lbfgs" or ours.l1_ratio == 0:
        ours.set_params(warm_start=True, **({"max_iter": 5} if "max_iter" in ours.get_params() else {})).fit(x, y)


def test_a_stream_goes_on_where_scikit_learn_ended():
    x, y = samples(3, "")
    ours = from_sklearn(linear_model.LogisticRegression().fit(x, y))
    before = ours.score(x, y)
    assert ours.partial_fit(x, y).score(x, y) >= before - 0.05


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_has_no_counterpart():
    x, y = samples(3, "")
    with pytest.raises(TypeError, match="expected one of LogisticRegression"):
        from_sklearn(DecisionTreeClassifier().fit(x, y))
    with pytest.raises(TypeError, match="expected one of LogisticRegression"):
        to_sklearn(linear_model.LogisticRegression().fit(x, y))
    with pytest.raises(NotFittedError):
        from_sklearn(linear_model.LogisticRegression())
    with pytest.raises(NotFittedError):
        to_sklearn(sfb.models.LogisticRegression())
    several = neural_network.MLPClassifier((3,), max_iter=2).fit(x, np.array([y == "a", y != "c"]).T.astype(int))
    with pytest.raises(TypeError, match="several labels"):
        from_sklearn(several)
    counts = neural_network.MLPRegressor("poisson", (3,), max_iter=2).fit(x, np.arange(90.0))
    with pytest.raises(TypeError, match="poisson"):
        from_sklearn(counts)
