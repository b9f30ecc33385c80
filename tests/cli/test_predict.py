"""The commands sfb predict and sfb export."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("sklearn")

from sklearn.datasets import dump_svmlight_file, load_digits

import sfb.models
from sfb.cli.main import cli


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=True)


@pytest.fixture(scope="module")
def digits():
    """Samples in float32, as readers may give them, and their labels."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    """A model of the first half, and its file."""
    x, y = digits
    fitted = sfb.models.LogisticRegression(max_iter=500).fit(x[:900], y[:900])
    path = tmp_path_factory.mktemp("model") / "digits.npz"
    sfb.models.save(path, fitted)
    return fitted, path


@pytest.fixture
def data(digits, tmp_path):
    x, y = digits
    np.savez(tmp_path / "data.npz", x=x[900:], y=y[900:])
    return tmp_path / "data.npz"


def test_accuracy(model, data, digits):
    x, y = digits
    right = int((model[0].predict(x[900:]) == y[900:]).sum())
    done = run("predict", model[1], data)
    assert done.output == f"897 samples, accuracy {right / 897:.4f} ({right} right)\n", done.output
    assert done.exit_code == 0
    assert right > 750


def test_files_of_labels(model, data, digits, tmp_path):
    expected = model[0].predict(digits[0][900:])
    for suffix in (".npy", ".csv", ".txt"):
        assert run("predict", model[1], data, "-o", tmp_path / f"out{suffix}").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "label"
    assert lines[1:] == (tmp_path / "out.txt").read_text().splitlines() == [str(label) for label in expected]


def test_files_of_probabilities(model, data, digits, tmp_path):
    """Text holds the same float32 numbers as .npy."""
    expected = model[0].predict_proba(digits[0][900:])
    for suffix in (".npy", ".csv", ".txt"):
        assert run("predict", model[1], data, "--proba", "-o", tmp_path / f"out{suffix}").exit_code == 0
    saved = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(saved, expected, rtol=1e-4, atol=1e-6)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "0,1,2,3,4,5,6,7,8,9"
    np.testing.assert_array_equal(np.array([line.split(",") for line in lines[1:]], saved.dtype), saved)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "out.txt", dtype=saved.dtype), saved)


def test_libsvm_data_without_the_last_features(model, digits, tmp_path):
    """Features that no sample has are missing at the end of sparse data."""
    x, y = digits
    x = x[900:930].copy()
    x[:, 60:] = 0
    dump_svmlight_file(x, y[900:930], str(tmp_path / "data"), zero_based=False)
    assert run("predict", model[1], tmp_path / "data", "-o", tmp_path / "out.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model[0].predict(x))


def test_text_labels_with_commas(tmp_path, rng):
    x = rng.standard_normal((20, 3)).astype(np.float32)
    y = np.where(x[:, 0] > 0, "a, b", "c")
    sfb.models.save(tmp_path / "m.npz", sfb.models.LinearSVC().fit(x, y))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    assert "accuracy" in run("predict", tmp_path / "m.npz", tmp_path / "data.npz", "-o", tmp_path / "out.csv").output
    assert '"a, b"' in (tmp_path / "out.csv").read_text()


def wide(x, y):
    return {"x": np.hstack([x, x]), "y": y}


WRONG = {
    "features that differ": (wide, (), "128 features, but the model is expecting 64"),
    "text for labels": (lambda x, y: {"x": x, "y": y.astype(str)}, (), "labels of the data are <U"),
    "another suffix": (lambda x, y: {"x": x, "y": y}, ("-o", "out.parquet"), "ends in .npy, .csv, .txt"),
    "no folder": (lambda x, y: {"x": x, "y": y}, ("-o", "none/out.csv"), "folder"),
    "no array": (lambda x, y: {"features": x}, (), "x"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong(model, digits, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    make, options, words = WRONG[what]
    np.savez("data.npz", **make(digits[0][900:], digits[1][900:]))
    done = run("predict", model[1], "data.npz", *options)
    assert done.exit_code in (1, 2)
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_table_without_labels_may_say_so(model, tmp_path):
    (tmp_path / "new.csv").write_text("a,b\n1,2\n3,4\n")
    pytest.importorskip("pyarrow")
    output = run("predict", model[1], tmp_path / "new.csv").output
    assert "(--labels NAME), one of a, b; --no-labels if there are none" in output


def test_labels_that_the_model_does_not_know(model, digits, tmp_path):
    x, y = digits
    np.savez(tmp_path / "data.npz", x=x[900:], y=y[900:] + 5)
    done = run("predict", model[1], tmp_path / "data.npz")
    assert done.exit_code == 0
    assert "does not know the labels 10, 11, 12, 13, 14;" in done.output


def test_no_probabilities(tmp_path, data, digits):
    sfb.models.save(tmp_path / "m.npz", sfb.models.LinearSVC(0.01).fit(digits[0][:200], digits[1][:200]))
    done = run("predict", tmp_path / "m.npz", data, "--proba", "-o", tmp_path / "out.npy")
    assert done.exit_code == 1
    assert "no probabilities" in done.output


def test_no_model(tmp_path, data):
    (tmp_path / "m.npz").write_text("text")
    done = run("predict", tmp_path / "m.npz", data)
    assert done.exit_code == 1
    assert "no model file" in done.output
    assert run("predict", tmp_path / "none.npz", data).exit_code == 2


def test_export(model, tmp_path):
    pytest.importorskip("onnx")
    done = run("export", model[1], tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    import onnx

    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))
    (tmp_path / "text.npz").write_text("text")
    assert "no model file" in run("export", tmp_path / "text.npz", tmp_path / "m.onnx").output
