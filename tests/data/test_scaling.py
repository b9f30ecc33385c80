"""Scales against scikit-learn's, of samples divided among ranks too."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array

from sfb.data import DataError, Scaler, fit_scaler


@pytest.fixture(params=["array", "CSR"])
def x(request, rng):
    if request.param == "array":
        x = rng.standard_normal((50, 7)).astype(np.float32) * [1, 10, 1e-3, 1e6, 1, 1, 1] + [0, 5, 1e3, 1e8, 0, 0.1, 0]
        x[:, 5:] = [0.1, 0]
        return x.astype(np.float32)
    return csr_matrix(random_array((50, 7), density=0.3, dtype=np.float32, rng=rng)) * np.float32(40)


def dense(x):
    return x if isinstance(x, np.ndarray) else x.toarray()


def in_ranks(kind, x, mask, ranks):
    """Return the scale of samples that several ranks hold, here threads."""
    shards = np.array_split(np.arange(x.shape[0]), ranks - 1)
    shards.insert(1, np.arange(0))  # a rank without samples
    arrays, barrier = [None] * ranks, Barrier(ranks, timeout=30)

    def fit(rank):
        def combine(array, operation):
            arrays[rank] = array
            barrier.wait()
            total = sum(arrays) if operation == "sum" else np.max(arrays, axis=0)
            barrier.wait()
            return total

        return fit_scaler(kind, x[shards[rank]], mask[shards[rank]], combine)

    with ThreadPoolExecutor(ranks) as pool:
        scalers = list(pool.map(fit, range(ranks)))
    assert len({scaler.factor.tobytes() for scaler in scalers}) == 1
    return scalers[0]


@pytest.mark.parametrize("kind", ["standard", "minmax", "maxabs"])
@pytest.mark.parametrize("values", [5, 1 << 20])
def test_as_scikit_learn(x, kind, values, rng, monkeypatch):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    monkeypatch.setattr("sfb.data.scaling._VALUES", values)
    mask = rng.random(50) < 0.8
    if kind == "minmax" and not isinstance(x, np.ndarray):
        with pytest.raises(DataError, match="zeros of sparse data"):
            fit_scaler(kind, x, mask)
        return
    oracle = {
        "standard": preprocessing.StandardScaler(with_mean=isinstance(x, np.ndarray)),
        "minmax": preprocessing.MinMaxScaler(),
        "maxabs": preprocessing.MaxAbsScaler(),
    }[kind].fit(x[mask].astype(np.float64))
    expected = dense(oracle.transform(x.astype(np.float64)))
    for scaler in (fit_scaler(kind, x, mask), in_ranks(kind, x, mask, 4)):
        np.testing.assert_allclose(dense(scaler.apply(x.copy())), expected, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose((dense(x) - scaler.offset) * scaler.factor, expected, rtol=1e-6, atol=1e-6)


def test_constant_features_keep_their_size():
    x = np.full((1000, 3), [0.1, -7e8, 0], np.float32)
    every = np.ones(1000, bool)
    for kind in ("standard", "minmax"):
        assert fit_scaler(kind, x, every).factor.tolist() == [1, 1, 1]
    assert fit_scaler("maxabs", x, every).factor[2] == 1
    assert fit_scaler("standard", csr_matrix(x), every).factor.tolist() == [1, 1, 1]


def test_memory_maps_stay_as_they_are(x, tmp_path):
    scaler = Scaler("maxabs", np.zeros(7), np.full(7, 2.0))
    before = x.copy()
    (x if isinstance(x, np.ndarray) else x.data).flags.writeable = False
    for folder in (None, tmp_path):
        scaled = scaler.apply(x, folder)
        np.testing.assert_array_equal(dense(scaled), 2 * dense(before))
        np.testing.assert_array_equal(dense(x), dense(before))
    assert not [*tmp_path.iterdir()]


def test_refuses_unknown_kinds():
    with pytest.raises(DataError, match="one of standard, minmax, maxabs, got 'robust'"):
        fit_scaler("robust", np.ones((2, 2), np.float32), np.ones(2, bool))
