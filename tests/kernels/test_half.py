"""Rounding to 16 bits."""

import numpy as np
import pytest

from sfb.kernels import half

EVERY = np.arange(1 << 16, dtype=np.uint16)


def rounded(x, kind, seed=None):
    packed, result = np.empty(x.shape, np.uint16), np.empty_like(x)
    half.pack(x, packed, kind, seed)
    half.unpack(packed, result, kind)
    return result


def values(kind):
    """Every value of a format."""
    if kind == "float16":
        return EVERY.view(np.float16).astype(np.float32)
    return (EVERY.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("kind", half.FORMATS)
@pytest.mark.parametrize("seed", [None, 7])
def test_every_value_survives(kind, seed):
    x = np.empty(1 << 16, np.float32)
    half.unpack(EVERY, x, kind)
    np.testing.assert_array_equal(x, values(kind))
    np.testing.assert_array_equal(rounded(x, kind, seed), x)
    np.testing.assert_array_equal(np.signbit(rounded(x, kind, seed)[~np.isnan(x)]), np.signbit(x[~np.isnan(x)]))


def samples(kind):
    rng = np.random.default_rng(0)
    largest = 65504 if kind == "float16" else 3e38
    x = rng.standard_normal(20000) * 10.0 ** rng.integers(-9, 4, 20000)
    return np.clip(x, -largest, largest).astype(np.float32)


def neighbours(x, kind):
    ladder = np.unique(values(kind)[np.isfinite(values(kind))]).astype(np.float64)
    above = np.searchsorted(ladder, x)
    return ladder[np.maximum(0, above - 1)], ladder[np.minimum(above, len(ladder) - 1)]


@pytest.mark.parametrize("kind", half.FORMATS)
def test_nearest_is_nearest(kind):
    x = samples(kind)
    below, above = neighbours(x, kind)
    result = rounded(x, kind).astype(np.float64)
    np.testing.assert_array_equal(abs(result - x), np.minimum(abs(below - x), abs(above - x)))
    if kind == "float16":
        np.testing.assert_array_equal(rounded(x, kind), x.astype(np.float16).astype(np.float32))


def test_ties_go_to_even():
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8], np.float32)
    np.testing.assert_array_equal(rounded(x, "bfloat16"), np.array([1, 1 + 2**-6, -1], np.float32))


@pytest.mark.parametrize("kind", half.FORMATS)
def test_stochastic_takes_a_neighbour_and_is_exact_in_the_mean(kind):
    x = samples(kind)[:500]
    below, above = neighbours(x, kind)
    total = np.zeros_like(x, np.float64)
    trials = 2000
    for seed in range(trials):
        result = rounded(x, kind, seed)
        assert ((result == below) | (result == above)).all()
        total += result
    sigma = (above - below) / 2 / np.sqrt(trials)
    assert (abs(total / trials - x) <= 6 * sigma).all()


@pytest.mark.parametrize("kind", half.FORMATS)
def test_a_seed_gives_the_same_bits(kind):
    x = samples(kind)
    np.testing.assert_array_equal(rounded(x, kind, 5), rounded(x, kind, 5))
    assert (rounded(x, kind, 5) != rounded(x, kind, 6)).any()


def test_beyond_the_range():
    x = np.array([1e6, -1e6, np.inf, -np.inf, np.nan, 65519, 65521], np.float32)
    expected = np.array([np.inf, -np.inf, np.inf, -np.inf, np.nan, 65504, np.inf], np.float32)
    np.testing.assert_array_equal(rounded(x, "float16"), expected)
    assert np.isnan(rounded(np.array([np.float32("nan")]), "bfloat16", 3)).all()


@pytest.mark.parametrize(
    ("x", "packed", "kind", "error"),
    [
        (np.ones(3), np.ones(3, np.uint16), "bfloat16", TypeError),
        (np.ones(3, np.float32), np.ones(3, np.int16), "bfloat16", TypeError),
        (np.ones(3, np.float32), np.ones(4, np.uint16), "bfloat16", ValueError),
        (np.ones(3, np.float32), np.ones(3, np.uint16), "float8", ValueError),
        (np.ones((3, 3), np.float32).T[:2], np.ones((2, 3), np.uint16), "float16", TypeError),
    ],
)
def test_refuses(x, packed, kind, error):
    with pytest.raises(error):
        half.pack(x, packed, kind)
