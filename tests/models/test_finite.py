"""Messages that name the sample with NaN, infinity or a value too large."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("sklearn")

from sfb.models import (
    DictionaryLearning,
    Lasso,
    LatentDirichletAllocation,
    LogisticRegression,
    MatrixFactorization,
    MetricLearning,
    MiniBatchDictionaryLearning,
    MLPRegressor,
)
from sfb.models.finite import check_narrowed, naming_samples

SAMPLES, ROW, COLUMN = 20, 17, 2
MAKE = {
    "LogisticRegression": LogisticRegression,
    "MLPRegressor": MLPRegressor,
    "Lasso": Lasso,
    "MetricLearning": MetricLearning,
    "DictionaryLearning": lambda: DictionaryLearning(2),
    "MiniBatchDictionaryLearning": lambda: MiniBatchDictionaryLearning(2),
    "LatentDirichletAllocation": lambda: LatentDirichletAllocation(2),
    "MatrixFactorization": lambda: MatrixFactorization(2),
}
SPARSE = ("LogisticRegression", "Lasso", "LatentDirichletAllocation", "MatrixFactorization")
CASES = [(name, np.asarray) for name in MAKE] + [(name, sparse.csr_array) for name in SPARSE]


def spoiled(value, form=np.asarray):
    """Return samples, an element of which has a value."""
    x = np.random.default_rng(0).random((SAMPLES, 4))
    x[ROW, COLUMN] = value
    return form(x)


@pytest.mark.mpi
@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (-np.inf, "infinity.*")], ids=["NaN", "infinity"])
@pytest.mark.parametrize(("name", "form"), CASES)
def test_features(world, name, form, value, words):
    """The last rank has the bad value; all ranks raise, and say what it has where."""
    x = spoiled(value if world.rank == world.size - 1 else 1.0, form)
    message = rf"Input X contains {words}: {value} in sample {ROW} of this rank, column {COLUMN} \(both from 0\)"
    with pytest.raises(ValueError, match=message):
        MAKE[name]().fit(x, np.arange(SAMPLES) % 2)


@pytest.mark.mpi
def test_targets_and_weights(world):
    x, y = np.random.default_rng(0).random((SAMPLES, 4)), np.arange(SAMPLES) % 2
    bad = np.ones(SAMPLES)
    bad[ROW] = np.nan
    with pytest.raises(ValueError, match=rf"Input y contains NaN: nan in sample {ROW} of this rank"):
        Lasso().fit(x, bad)
    with pytest.raises(ValueError, match=rf"Input sample_weight contains NaN: nan in sample {ROW} of this rank"):
        LogisticRegression().fit(x, y, sample_weight=bad)


def test_samples_to_predict_from():
    x, y = np.random.default_rng(0).random((SAMPLES, 4)), np.arange(SAMPLES) % 2
    with pytest.raises(ValueError, match=rf"Input X contains NaN: nan in sample {ROW} .* column {COLUMN}"):
        LogisticRegression().fit(x, y).predict(spoiled(np.nan))
    with pytest.raises(ValueError, match=rf"Input pairs contains NaN: nan in sample {ROW}"):
        MetricLearning(max_iter=1).fit(x, y).pair_distance(np.stack([spoiled(np.nan)] * 2, axis=1))
    with pytest.raises(ValueError, match="Input X contains NaN or infinity: user 1 has nan for item 3"):
        MatrixFactorization(2).fit((np.array([0, 1]), np.array([0, 3]), np.array([1.0, np.nan])))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_values_too_large_for_float32(form):
    x = spoiled(-1e39, form)
    with pytest.raises(ValueError, match=rf"too large for float32: -1e\+39 in sample {ROW} .* column {COLUMN}"):
        check_narrowed(x, np.float32)
    check_narrowed(x, np.float64)
    check_narrowed(spoiled(3e38, form), np.float32)
    check_narrowed(x[:0], np.float32)


@pytest.mark.mpi
def test_a_float32_dictionary_takes_no_larger_values(world):
    model = MiniBatchDictionaryLearning(2, random_state=0).partial_fit(spoiled(1.0).astype(np.float32))
    with pytest.raises(ValueError, match=rf"too large for float32: 1e\+39 in sample {ROW}"):
        model.partial_fit(spoiled(1e39))


@pytest.mark.mpi
def test_targets_and_weights_too_large_for_float32_features(world):
    x, large = spoiled(1.0).astype(np.float32), np.ones(SAMPLES)
    large[ROW] = 1e39
    with pytest.raises(ValueError, match=rf"Input y contains a value too large for float32: 1e\+39 in sample {ROW}"):
        MLPRegressor().fit(x, large)
    with pytest.raises(ValueError, match=rf"Input sample_weight .*too large for float32: .*sample {ROW}"):
        LogisticRegression().fit(x, np.arange(SAMPLES) % 2, sample_weight=large)


def test_other_errors_pass():
    with pytest.raises(ValueError, match=r"^quux$"), naming_samples(spoiled(np.nan)):
        raise ValueError("quux")
    with pytest.raises(ValueError, match=r"^Input X contains NaN$"), naming_samples([["a"]]):
        raise ValueError("Input X contains NaN")
