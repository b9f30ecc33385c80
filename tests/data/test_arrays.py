"""Arrays in .npz and .npy files."""

import numpy as np
import pytest

from sfb.data import DataError, describe, read, read_part

X = np.arange(24.0).reshape(6, 4)
Y = np.arange(6) % 3


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def save(request, tmp_path):
    def save(**arrays):
        request.param(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    return save


def test_names(save):
    path = save(images=X, digits=Y, x=-X)
    x, y = read(path, features="images", labels="digits")
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    with pytest.raises(DataError, match=r"expected arrays images and y, found images, digits, x; .*--labels"):
        read(path, features="images")
    with pytest.raises(DataError, match="one array"):
        read(path, features=("images", "x"), labels="digits")


@pytest.mark.parametrize("kind", ["u1", "i8", "?", "f2", ">f4", "f8", "<f4"])
def test_types_of_features(save, kind):
    x, _ = read(save(x=X.astype(kind), y=Y))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, X.astype(kind).astype(np.float32))


@pytest.mark.parametrize("shape", [(6, 2, 2), (6, 2, 2, 1), (6, 4, 1)])
def test_images_are_flattened_in_words(save, shape, caplog):
    x, _ = read(save(x=X.reshape(shape), y=Y))
    np.testing.assert_array_equal(x, X)
    assert f"samples of shape {' × '.join(map(str, shape[1:]))} are flattened to 4 features" in caplog.text


@pytest.mark.parametrize("labels", [Y[:, None], np.eye(3)[Y], np.eye(3, dtype=bool)[Y], np.eye(3, dtype=int)[Y]])
def test_columns_and_one_hot_rows(save, labels):
    path = save(x=X, y=labels)
    np.testing.assert_array_equal(read(path)[1], Y)
    parts = [read_part(describe(path), part, 2) for part in range(2)]
    np.testing.assert_array_equal(np.concatenate([part.distinct[part.labels] for part in parts]), Y)


def test_several_targets(save):
    path = save(x=X, y=X[:, :2] / 3)
    np.testing.assert_array_equal(read(path, targets="numbers")[1], X[:, :2] / 3)
    assert read_part(describe(path, targets="numbers"), 1, 2).labels.shape == (3, 2)
    assert read(save(x=X, y=X[:, :1]), targets="numbers")[1].shape == (6,)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.ones((6, 2))}, r"one-hot.*sample 0 \(from 0\) has \[1\. 1\.\]"),
        ({"y": np.eye(3)[Y] * 2}, "must be one-hot"),
        ({"y": np.full((6, 2), "a")}, "must be one-hot"),
        ({"y": np.zeros((6, 1, 1))}, r"got \(6, 4\) and \(6, 1, 1\)"),
        ({"y": Y[:5]}, r"got \(6, 4\) and \(5,\)"),
        ({"x": X[:, 0]}, r"got \(6,\) and \(6,\)"),
        ({"x": np.float64(3)}, r"got \(\) and"),
        ({"x": X + 0j}, "expected numbers in x, got complex128"),
        ({"x": X * 1e38}, r"sample 0 \(from 0\), feature 4|sample 1 \(from 0\), feature 0: 4e\+38 is beyond float32"),
        ({"x": np.where(X == 13, np.nan, X)}, r"sample 3 \(from 0\), feature 1: nan is not"),
        ({"x": np.where(X == 13, -np.inf, X)}, r"sample 3 \(from 0\), feature 1: -inf is not"),
        ({"y": Y + 0.5}, r"sample 0 \(from 0\) has the label 0\.5"),
        ({"x": X[:, :0]}, "a feature each"),
        ({"x": X[:1], "y": Y[:1]}, "at least 2 samples"),
    ],
)
def test_refuses(save, arrays, message, monkeypatch):
    monkeypatch.setattr("sfb.data.arrays.BLOCK", 64)  # two samples
    with pytest.raises(DataError, match=message):
        read(save(**{"x": X, "y": Y, **arrays}))


@pytest.mark.parametrize("y", [np.array([1, np.nan] * 3), np.full((6, 2), np.inf)])
def test_targets_are_finite(save, y):
    with pytest.raises(DataError, match=r"sample [01] \(from 0\) has the target .* not a finite number"):
        read(save(x=X, y=y), targets="numbers")
    with pytest.raises(DataError, match="targets must be numbers"):
        read(save(x=X, y=np.array(["a"] * 6)), targets="numbers")


def test_npy_files(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    path = str(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"labels=\"y.npy\""):
        read(path)
    with pytest.raises(DataError, match=r"no such file of labels: z\.npy"):
        read(path, labels="z.npy")
    for labels in ("y.npy", str(tmp_path / "y.npy")):
        np.testing.assert_array_equal(read(path, labels=labels)[1], Y)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(read("x.npy", labels="y.npy")[0], X)


@pytest.mark.parametrize("cut", [3, 100, 200])
def test_files_that_are_cut_off(tmp_path, save, cut):
    path = save(x=np.random.default_rng(0).standard_normal((50, 4)), y=np.arange(50) % 2)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    for name in (path, str(tmp_path / "x.npy")):
        with open(name, "r+b") as file:
            file.truncate(file.seek(0, 2) - cut)
        with pytest.raises(DataError, match=r"damaged|cut off|cannot be read"):
            read(name, labels="y.npy" if name.endswith("npy") else None)


def test_an_archive_with_damaged_elements(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=np.random.default_rng(0).random((500, 4)), y=np.arange(500) % 2)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[300:400] = bytes(100)
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        read(str(tmp_path / "data.npz"))
