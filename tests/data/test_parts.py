"""Parts of files: together they are the whole, in memory and in caches."""

import json
import logging
import tracemalloc

import numpy as np
import pytest
from data_files import FORMATS, example, write
from make_libsvm import write as make

from sfb.data import DataError, describe, fit_scaler, read, read_part, unite

X, Y = example()
formats = pytest.mark.parametrize("kind", FORMATS)


@pytest.fixture(autouse=True)
def pyarrow():
    pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let files consist of many blocks."""
    monkeypatch.setattr("sfb.data.text.Text.chunks.__defaults__", (0, 1, 64))
    monkeypatch.setattr("sfb.data.arrays.BLOCK", 8 * X.shape[1] * 4)
    monkeypatch.setattr("sfb.data.tables.BLOCK", 8 * (X.shape[1] + 1) * 4)


def array(x):
    return x if isinstance(x, np.ndarray) else x.toarray()


def joined(source, parts, **options):
    """Return the features and labels of all parts."""
    found = [read_part(source, part, parts, **options) for part in range(parts)]
    width = max(part.width for part in found)
    classes, tables = unite([part.distinct for part in found], untyped=source.untyped)
    x = np.concatenate([array(part.x(width)) for part in found])
    return x, np.concatenate([classes[table][part.labels] for table, part in zip(tables, found, strict=True)])


@formats
def test_read(tmp_path, kind):
    path, options = write(tmp_path, kind, X, Y)
    x, y = read(path, **options)
    assert x.dtype == np.float32
    assert isinstance(x, np.ndarray) == (not kind.startswith("svm"))
    np.testing.assert_array_equal(array(x), X.astype(np.float32))
    np.testing.assert_array_equal(y, Y)


@formats
@pytest.mark.parametrize("cached", [False, True], ids=["memory", "cache"])
def test_parts_are_the_whole(tmp_path, kind, cached):
    path, options = write(tmp_path, kind, X, Y)
    source = describe(path, **options)
    for parts in range(1, 8):
        x, y = joined(source, parts, cache=tmp_path / "cache" if cached else None)
        np.testing.assert_array_equal(x, X.astype(np.float32))
        np.testing.assert_array_equal(y, Y)
    x, y = joined(source, len(X) + 9)  # some are empty
    np.testing.assert_array_equal(x, X.astype(np.float32))


@formats
def test_numbers_as_targets(tmp_path, kind):
    targets = Y / 4 + 0.125
    path, options = write(tmp_path, kind, X, targets)
    source = describe(path, targets="numbers", **options)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        parts = [read_part(source, part, 3, cache=cache) for part in range(3)]
        y = np.concatenate([part.labels for part in parts])
        assert y.dtype == np.float64
        np.testing.assert_array_equal(y, targets)
    with pytest.raises(DataError, match=r"label.* -2\.375.*--targets numbers|label.* 0\.125.*--targets numbers"):
        read(path, **options)


@formats
def test_without_labels(tmp_path, kind):
    path, options = write(tmp_path, kind, X, Y)
    x, y = read(path, labelled=False, **options)
    assert y is None
    np.testing.assert_array_equal(array(x), X.astype(np.float32))


@pytest.mark.parametrize("kind", ["svm", "csv.gz", "parquet", "float64 npy"])
def test_a_cache_is_used_again(tmp_path, kind, monkeypatch):
    path, options = write(tmp_path, kind, X, Y)
    source = describe(path, **options)
    cache = tmp_path / "cache"
    first = read_part(source, 1, 3, cache=cache)
    base = first.x()
    assert not first.arrays["values"].flags.writeable
    assert first.folder is not None
    monkeypatch.setattr(type(source), "blocks", None)  # nothing can be read
    again = read_part(source, 1, 3, cache=cache)
    np.testing.assert_array_equal(array(again.x()), array(base))
    np.testing.assert_array_equal(again.distinct[again.labels], first.distinct[first.labels])
    assert again.distinct.dtype == first.distinct.dtype
    assert not [*cache.rglob(".*")]
    with pytest.raises(TypeError):
        read_part(source, 1, 4, cache=cache)
    assert not [*cache.rglob(".*")]


def test_a_cache_follows_its_file(tmp_path):
    path, _ = write(tmp_path, "svm", X, Y)
    cache = tmp_path / "cache"
    read_part(describe(path), cache=cache)
    write(tmp_path, "svm", 2 * X, Y)
    np.testing.assert_array_equal(read_part(describe(path), cache=cache).x().toarray(), 2 * X)
    np.testing.assert_array_equal(read_part(describe(path, features="9"), cache=cache).x(9).shape, (29, 9))


def test_a_damaged_cache(tmp_path):
    path, _ = write(tmp_path, "svm", X, Y)
    folder = read_part(describe(path), cache=tmp_path).folder
    with (folder / "values").open("ab") as file:
        file.truncate(8)
    with pytest.raises(DataError, match=f"damaged; remove {folder}"):
        read_part(describe(path), cache=tmp_path)
    assert json.loads((folder / "part.json").read_text())["rows"] == len(X)


def test_a_cache_that_cannot_be_written(tmp_path):
    path, _ = write(tmp_path, "svm", X, Y)
    with pytest.raises(OSError, match=r"data.svm/"):
        read_part(describe(path), cache=tmp_path / "data.svm")


def test_files_of_float32_are_mapped_as_they_are(tmp_path):
    path, options = write(tmp_path, "npy", X, Y)
    part = read_part(describe(path, **options), 1, 2)
    assert not part.x().flags.owndata
    assert not part.x().flags.writeable
    x = X.astype(np.float32)
    x[20, 2] = np.nan
    write(tmp_path, "npy", x, Y)
    with pytest.raises(DataError, match=r"sample 20 .*, feature 2: nan"):
        read_part(describe(path, **options), 1, 2)


def test_notes_are_logged(tmp_path, caplog):
    (tmp_path / "ranked").write_text("1 qid:1 1:1\n2 qid:1 2:1\n")
    with caplog.at_level(logging.WARNING, "sfb"):
        read(str(tmp_path / "ranked"))
    assert "ranked: the fields qid of the file are ignored" in caplog.text


def test_a_cache_takes_the_memory_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr("sfb.data.text.Text.chunks.__defaults__", (0, 1, 1 << 18))
    monkeypatch.setattr("sfb.data.libsvm._ODD", 100)
    monkeypatch.setattr("sfb.data.scaling._VALUES", 1 << 14)
    make(tmp_path / "made.svm", 6 << 20)
    path, _ = write(tmp_path, "svm", X, Y)
    read_part(describe(path)).x()  # imports what is needed
    source = describe(str(tmp_path / "made.svm"))
    peaks = []
    for cache in (tmp_path / "cache", None):
        tracemalloc.start()
        part = read_part(source, cache=cache)
        mask = np.ones(part.rows, bool)
        fit_scaler("maxabs", part.x(), mask).apply(part.x(), part.folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 3 << 20 < 4 << 20 < part.arrays["values"].nbytes + part.arrays["columns"].nbytes < peaks[1]


def test_a_made_file(tmp_path):
    """What the benchmark of large files writes is what it says."""
    sklearn = pytest.importorskip("sklearn.datasets")
    path = tmp_path / "made.svm"
    size = make(path, 1 << 19, features=300, classes=4, filled=20)
    assert path.stat().st_size == size
    x, y = read(str(path))
    expected, labels = sklearn.load_svmlight_file(str(path), dtype=np.float32)
    assert x.shape == expected.shape
    assert (x != expected).nnz == 0
    np.testing.assert_array_equal(y, labels)
    assert sorted(set(y.tolist())) == [1, 2, 3, 4]
