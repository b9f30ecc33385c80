"""ONNX files, evaluated by the reference of onnx and by ONNX Runtime."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnx")

from onnx.reference import ReferenceEvaluator

import sfb.models
from sfb.models import ModelError, load, save, to_onnx

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def runtimes(path):
    """Yield functions of X that return the outputs by name."""
    reference = ReferenceEvaluator(str(path))
    yield lambda x: dict(zip(reference.output_names, reference.run(None, {"X": x}), strict=True))
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    yield lambda x: dict(zip(names, session.run(None, {"X": x}), strict=True))


LABELS = {"texts": np.array(["a", "b", "c"]), "integers": np.array([-1, 0, 7]), "two": np.array(["no", "yes"])}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", ["LogisticRegression", "LinearSVC", "relu", "tanh", "logistic"])
def test_classifiers(tmp_path, rng, name, labels, dtype):
    x = rng.standard_normal((40, 5)).astype(dtype)
    kinds = LABELS[labels]
    y = kinds[rng.integers(0, len(kinds), 40)]
    if name in ("LogisticRegression", "LinearSVC"):
        model = getattr(sfb.models, name)().fit(x, y)
    else:
        model = sfb.models.MLPClassifier((6, 4), name, max_iter=3).fit(x, y)
    to_onnx(model, tmp_path / "m.onnx")
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for run in runtimes(tmp_path / "m.onnx"):
        found = run(x)
        assert found["label"].tolist() == model.predict(x).tolist()
        if name == "LinearSVC":
            scores = model.decision_function(x).reshape(40, -1)
            np.testing.assert_allclose(found["scores"], scores, rtol=tolerance, atol=tolerance)
        else:
            assert found["probabilities"].dtype == dtype
            np.testing.assert_allclose(found["probabilities"], model.predict_proba(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("targets", [(), (3,)], ids=str)
def test_regression_with_a_scaler(tmp_path, rng, targets):
    """By way of a model file, whose scaler the graph holds."""
    x = 50 + rng.standard_normal((40, 5))
    offset, factor = np.full(5, 50.0), np.full(5, 0.5)
    model = sfb.models.MLPRegressor((6,), max_iter=3).fit((x - offset) * factor, rng.standard_normal((40, *targets)))
    save(tmp_path / "m.npz", model, (offset, factor))
    to_onnx(load(tmp_path / "m.npz"), tmp_path / "m.onnx")
    expected = model.predict((x - offset) * factor).reshape(40, -1)
    for run in runtimes(tmp_path / "m.onnx"):
        np.testing.assert_allclose(run(x)["target"], expected, rtol=1e-10)


def test_a_metric(tmp_path, rng):
    x, components = rng.standard_normal((40, 5)), rng.standard_normal((3, 5))
    to_onnx(SimpleNamespace(save=lambda: {"kind": "metric", "components": components}), tmp_path / "m.onnx")
    for run in runtimes(tmp_path / "m.onnx"):
        np.testing.assert_allclose(run(x)["components"], x @ components.T, rtol=1e-12)


def test_a_dictionary_has_no_graph(tmp_path):
    model = SimpleNamespace(save=lambda: {"kind": "dictionary", "components": np.eye(3), "alpha": 0.1})
    with pytest.raises(ModelError, match="iterations"):
        to_onnx(model, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"sfb-mpi\[onnx\]"):
        to_onnx(None, tmp_path / "m.onnx")
