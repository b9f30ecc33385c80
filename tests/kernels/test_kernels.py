import itertools

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfb import kernels

dtypes = st.sampled_from([np.float32, np.float64])
depths = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 16, 63, 64, 65, 130])


def draw(depth, shape, dtype, seed=0):
    return oracle.draw(np.random.default_rng(seed), [depth], shape, dtype)


@settings(deadline=None, max_examples=60)
@given(depths, st.integers(1, 300), st.integers(0, 70), dtypes)
def test_rebuild(depth, rows, columns, dtype):
    shape = (rows, columns)
    parts = draw(depth, shape, dtype)
    g = np.full(shape, np.nan, dtype)
    kernels.rebuild(*parts[0], g)
    assert (abs(g - oracle.total(parts, shape)) <= oracle.bound(parts, shape, dtype)).all()


def test_rebuild_of_rows_wider_than_a_block_of_columns():
    for depth in (1, 2):
        parts = draw(depth, (3, 2500), np.float32)
        g = np.empty((3, 2500), np.float32)
        kernels.rebuild(*parts[0], g)
        assert (abs(g - oracle.total(parts, g.shape)) <= oracle.bound(parts, g.shape, np.float32)).all()


@settings(deadline=None, max_examples=60)
@given(depths, st.integers(1, 700), st.integers(1, 40), st.integers(1, 9), dtypes)
def test_bits_do_not_depend_on_how_many_share_the_rows(depth, rows, columns, parts, dtype):
    (u, v), *_ = draw(depth, (rows, columns), dtype)
    whole, shared = np.empty((rows, columns), dtype), np.full((rows, columns), np.nan, dtype)
    kernels.rebuild(u, v, whole)
    height = kernels.panel_height(whole.shape, whole.itemsize, depth)
    for index in range(parts):
        kernels.rebuild(u, v, shared, *kernels.partition(rows, height, parts, index))
    np.testing.assert_array_equal(whole, shared)


@given(st.integers(1, 10**6), st.integers(1, 300), st.integers(1, 70))
def test_partition_covers_every_row_once(rows, height, parts):
    ranges = [kernels.partition(rows, height, parts, index) for index in range(parts)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [0, 1, 3, 70])
def test_sgd(depth, dtype, momentum, nesterov):
    if nesterov and not momentum:
        pytest.skip("nesterov needs momentum")
    shape, rule = (67, 45), {"lr": 0.1, "momentum": momentum, "weight_decay": 0.05, "nesterov": nesterov}
    w = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    fused, dense = w.copy(), w.copy()
    velocities = [np.zeros(shape, dtype) for _ in range(2)]
    gradients = []
    for step in range(3):
        (u, v), *_ = parts = draw(depth, shape, dtype, seed=step)
        gradients.append(oracle.total(parts, shape))
        kernels.sgd(u, v, fused, velocities[0], **rule)
        kernels.sgd_dense(gradients[-1].astype(dtype), dense, velocities[1], **rule)
    expected = oracle.sgd(w, gradients, **rule)
    tolerance = 300 * np.finfo(dtype).eps * (1 + abs(expected).max())
    np.testing.assert_allclose(fused, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(dense, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_nan_and_inf_propagate(depth):
    (u, v), *_ = draw(depth, (20, 30), np.float64)
    u[0, 3], v[0, 4] = np.inf, np.nan
    g = np.empty((20, 30))
    kernels.rebuild(u, v, g)
    expected = u.T @ v
    np.testing.assert_array_equal(np.isnan(g), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(g), np.isinf(expected))


def test_read_only_factors_are_fine():
    (u, v), *_ = draw(3, (20, 30), np.float64)
    u.flags.writeable = v.flags.writeable = False
    g = np.empty((20, 30))
    kernels.rebuild(u, v, g)
    np.testing.assert_allclose(g, u.T @ v)


def test_refuses_what_does_not_fit():
    u, v, g = np.ones((2, 20)), np.ones((2, 30)), np.ones((20, 30))
    with pytest.raises(ValueError, match="expected u"):
        kernels.rebuild(u, v, g.T.copy())
    with pytest.raises(ValueError, match="expected u"):
        kernels.rebuild(u[:1], v, g)
    with pytest.raises(ValueError, match="rows"):
        kernels.rebuild(u, v, g, 3, 21)
    with pytest.raises(TypeError):
        kernels.rebuild(u.astype(np.float32), v, g)
    with pytest.raises(ValueError, match="velocity"):
        kernels.sgd(u, v, g, None, lr=1.0, momentum=0.5)
    with pytest.raises(ValueError, match="gradient"):
        kernels.sgd_dense(g[:, :4], g, None, lr=1.0)
    with pytest.raises(ValueError, match="rows"):
        kernels.sgd_dense(g[:4], g, None, lr=1.0)
    with pytest.raises(ValueError, match="rows"):
        kernels.rebuild(u[:, :4], v, g, 0, 8, 4)
    with pytest.raises(ValueError, match="elements"):
        kernels.reduce(g, 0, 31)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reduce_adds_rows_in_order(rng, dtype):
    parts = rng.standard_normal((5, 3000)).astype(dtype)
    expected = parts.copy()
    for part in parts[1:]:
        expected[0, 10:2990] += part[10:2990]
    kernels.reduce(parts, 10, 2990)
    np.testing.assert_array_equal(parts, expected)
