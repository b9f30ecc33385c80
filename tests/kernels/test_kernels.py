import itertools

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfb import kernels
from sfb.kernels import _products, _updates, status
from sfb.kernels.rules import ADAM

dtypes = st.sampled_from([np.float32, np.float64])
depths = st.sampled_from([0, 1, 2, 3, 5, 16, 17, 130, 256, 257, 600])


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("depth", "rows", "columns"), [(0, 3, 5), (1, 3, 9000), (20, 30, 9000), (300, 3, 9000), (300, 1100, 40)]
)
def test_rebuild_of_more_than_is_packed_at_once(depth, rows, columns, dtype):
    parts = draw(depth, (rows, columns), dtype)
    g = np.empty((rows, columns), dtype)
    kernels.rebuild(*parts[0], g)
    assert (abs(g - oracle.total(parts, g.shape)) <= oracle.bound(parts, g.shape, dtype)).all()


@settings(deadline=None, max_examples=60)
@given(depths, st.integers(1, 300), st.integers(1, 70), dtypes, st.floats(-2, 2), st.sampled_from([0.0, 1.0, -0.5]))
def test_accumulate(depth, rows, columns, dtype, alpha, beta):
    shape = (rows, columns)
    parts = draw(depth, shape, dtype)
    before = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    w = before.copy()
    kernels.accumulate(*parts[0], w, alpha=alpha, beta=beta)
    expected = beta * before.astype(np.float64) + alpha * oracle.total(parts, shape)
    bound = abs(alpha) * oracle.bound(parts, shape, dtype) + 4 * np.finfo(dtype).eps * (abs(expected) + abs(before))
    assert (abs(w - expected) <= bound + np.finfo(dtype).tiny).all()


@settings(deadline=None, max_examples=60)
@given(depths, st.integers(1, 500), st.integers(1, 140), st.integers(1, 9), dtypes, st.data())
def test_bits_do_not_depend_on_how_the_rows_are_shared(depth, rows, columns, parts, dtype, data):
    (u, v), *_ = draw(depth, (rows, columns), dtype)
    rule, w = kernels.sgd(0.1, 0.9), np.ones((rows, columns), dtype)
    wholes, shares = ([np.full_like(w, np.nan), w.copy(), w.copy(), w.copy()] for _ in range(2))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=parts, max_size=parts)))
    for arrays, ranges in ((wholes, [(0, rows)]), (shares, itertools.pairwise([0, *cuts, rows]))):
        for start, stop in ranges:
            kernels.rebuild(u, v, arrays[0], start, stop)
            kernels.accumulate(u, v, arrays[1], start, stop, alpha=0.3)
            kernels.update(rule, u, v, arrays[2], arrays[3:], start, stop)
    np.testing.assert_array_equal(wholes, shares)


@pytest.mark.parametrize("depth", [1, 40, 300])
def test_bits_do_not_depend_on_threads(depth):
    (u, v), *_ = draw(depth, (500, 3000), np.float32)
    rule, w = kernels.adam(0.1, 1, (0.9, 0.99), 1e-8), np.ones((500, 3000), np.float32)
    results = []
    for threads in (1, 2, 5):
        arrays = [w.copy() for _ in range(5)]
        kernels.rebuild(u, v, arrays[0], threads=threads)
        kernels.accumulate(u, v, arrays[1], threads=threads)
        kernels.update(rule, u, v, arrays[2], arrays[3:], threads=threads)
        results.append(arrays)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", range(5))
def test_rows_that_stream_have_the_bits_of_tiles(depth, dtype):
    (u, v), *_ = draw(depth, (3, 90_000), dtype)  # beyond what streams
    w = np.random.default_rng(1).standard_normal((3, 90_000)).astype(dtype)
    for alpha, beta in ((0.3, 1.0), (-0.1, 0.7)):
        whole, parts, g, its = w.copy(), w.copy(), np.empty_like(w), np.empty_like(w)
        kernels.accumulate(u, v, whole, alpha=alpha, beta=beta)
        kernels.rebuild(u, v, g, alpha=alpha)
        for left in range(0, 90_000, 10_000):
            here = slice(left, left + 10_000)
            part, its_part = w[:, here].copy(), np.empty((3, 10_000), dtype)
            kernels.accumulate(u, v[:, here].copy(), part, alpha=alpha, beta=beta)
            kernels.rebuild(u, v[:, here].copy(), its_part, alpha=alpha)
            parts[:, here], its[:, here] = part, its_part
        np.testing.assert_array_equal(parts, whole)
        np.testing.assert_array_equal(its, g)


def test_columns_of_a_product_have_the_bits_of_a_product_of_columns():
    (u, v), *_ = draw(300, (30, 200), np.float32)
    whole, part = np.empty((30, 200), np.float32), np.empty((30, 77), np.float32)
    kernels.rebuild(u, v, whole)
    kernels.rebuild(u, v[:, 51:128].copy(), part)
    np.testing.assert_array_equal(whole[:, 51:128], part)


def test_some_rows_of_a_product_into_an_array_of_their_own():
    (u, v), *_ = draw(5, (30, 20), np.float64)
    g = np.empty((7, 20))
    kernels.rebuild(u, v, g, first=-11)
    np.testing.assert_allclose(g, u[:, 11:18].T @ v)


@given(st.integers(0, 10**6), st.integers(1, 70))
def test_partition_covers_every_row_once(rows, parts):
    ranges = [kernels.partition(rows, parts, index) for index in range(parts)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert max(b - a for a, b in ranges) - min(b - a for a, b in ranges) <= 1


def rules():
    yield "sgd", kernels.sgd, oracle.sgd, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.05, "nesterov": False}
    yield "momentum", kernels.sgd, oracle.sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": False}
    yield "nesterov", kernels.sgd, oracle.sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
    adam = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.05}
    yield "adam", kernels.adam, oracle.adam, {**adam, "decoupled": False}
    yield "adamw", kernels.adam, oracle.adam, {**adam, "decoupled": True}
    yield "adagrad", kernels.adagrad, oracle.adagrad, {"lr": 0.1, "eps": 1e-6, "weight_decay": 0.05}
    yield "proximal", kernels.proximal, oracle.proximal, {"lr": 0.1, "l1": 0.7, "l2": 0.3}


@pytest.mark.parametrize(("make", "textbook", "settings_"), [pytest.param(*r[1:], id=r[0]) for r in rules()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("depth", "shape"), [(0, (67, 45)), (1, (67, 45)), (70, (67, 45)), (300, (67, 1045)), (3, (5, 7))]
)
def test_rules(make, textbook, settings_, dtype, depth, shape):
    w = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    fused, dense = w.copy(), w.copy()
    states = np.zeros((2, 2, *shape), dtype)
    gradients = []
    for step in range(3):
        (u, v), *_ = parts = draw(depth, shape, dtype, seed=step)
        gradients.append(oracle.total(parts, shape) * 0.5)
        rule = make(**settings_, **({"step": step + 1} if make is kernels.adam else {}))
        kernels.update(rule, u, v, fused, states[0], alpha=0.5)
        kernels.update_dense(rule, 2 * gradients[-1].astype(dtype), dense, states[1], alpha=0.5)
    expected = textbook(w, gradients, **settings_)
    tolerance = 300 * np.finfo(dtype).eps * (1 + abs(expected).max())
    np.testing.assert_allclose(fused, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(dense, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("depth", [0, 1, 30, 300])
def test_norm(depth):
    (u, v), *_ = draw(depth, (40, 70), np.float64)
    np.testing.assert_allclose(kernels.norm(u, v), np.linalg.norm(u.T @ v), rtol=1e-10)
    np.testing.assert_allclose(kernels.norm_dense(u), np.linalg.norm(u), rtol=1e-12)
    np.testing.assert_allclose(kernels.norm(1e200 * u, 1e-200 * v), np.linalg.norm(u.T @ v), rtol=1e-10)
    np.testing.assert_allclose(kernels.norm_dense(1e200 * u), 1e200 * np.linalg.norm(u), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shrink_rows(rng, dtype):
    w = rng.standard_normal((9, 30)).astype(dtype)
    w[3] *= 0.1
    w[4] = 0
    lengths = np.linalg.norm(w, axis=1, keepdims=True)
    expected = w * np.maximum(0, 1 - 2 / np.maximum(lengths, 1e-30))
    expected[8] = w[8]
    kernels.shrink_rows(w, 2.0, 0, 8)
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    assert not w[3].any()
    w[0, 0], w[1, 0] = np.nan, np.inf
    kernels.shrink_rows(w, 1.0)
    assert np.isnan(w[0]).all()
    assert np.isinf(w[1, 0])


@pytest.mark.parametrize("depth", [1, 2, 5, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_inf_and_denormals_are_as_in_numpy(depth, dtype):
    (u, v), *_ = draw(depth, (20, 30), dtype)
    u[0, 3], v[0, 4], u[0, 5] = np.inf, np.nan, -np.inf
    v[0, 6] = 0
    tiny = np.finfo(dtype).smallest_subnormal
    u[:, 9], v[:, 9] = 0, 0
    u[0, 9], v[0, 9] = tiny, 3
    with np.errstate(invalid="ignore"):
        expected = u.T @ v
    g, w = np.empty((20, 30), dtype), np.zeros((20, 30), dtype)
    kernels.rebuild(u, v, g)
    kernels.accumulate(u, v, w)
    for found in (g, w):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_array_equal(found[np.isinf(expected)], expected[np.isinf(expected)])
        assert found[9, 9] == 3 * tiny
    soft = np.full((20, 30), 1.0, dtype)
    kernels.update(kernels.proximal(1.0, 0.5), u, v, soft)
    np.testing.assert_array_equal(np.isnan(soft), np.isnan(expected))


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
        kernels.update(kernels.adam(0.1, 1, (0.9, 0.9), 1e-8), u, v, np.ones((20, 31)), [np.ones((20, 31))] * 2)
    with pytest.raises(ValueError, match="rows"):
        kernels.rebuild(u, v, g, 0, 5, 30, threads=2)
    with pytest.raises(ValueError, match="expected u"):
        kernels.rebuild(u[:1], v, g)
    with pytest.raises(ValueError, match="rows"):
        kernels.rebuild(u, v, g, 3, 21)
    with pytest.raises(TypeError, match="u must be C-contiguous, aligned float64 like the result, got float32"):
        kernels.rebuild(u.astype(np.float32), v, g)
    with pytest.raises(ValueError, match="shares memory"):
        kernels.accumulate(g[:2, :20].copy(), g[3:5], g)
    with pytest.raises(TypeError, match="matrix"):
        kernels.rebuild(u, v, g.astype(int))
    with pytest.raises(TypeError, match="matrix"):
        kernels.rebuild(u, v, g.ravel())
    with pytest.raises(TypeError, match="list"):
        kernels.rebuild(u, v, g.tolist())
    with pytest.raises(TypeError, match="v must be C-contiguous"):
        kernels.update(kernels.sgd(0.1, 0.9), u, np.asfortranarray(v), g, [g.copy()])
    with pytest.raises(TypeError, match="state 0 must be C-contiguous"):
        kernels.update(kernels.sgd(0.1, 0.9), u, v, g, [np.asfortranarray(g)])
    with pytest.raises(ValueError, match="1 states"):
        kernels.update(kernels.sgd(1.0, 0.5), u, v, g)
    with pytest.raises(ValueError, match="1 states"):
        kernels.update(kernels.sgd(1.0, 0.5), u, v, g, [g[:, :4]])
    with pytest.raises(ValueError, match="1 states"):
        kernels.update(kernels.sgd(1.0, 0.5), u, v, g, [g[:4].copy()])
    with pytest.raises(ValueError, match="gradient"):
        kernels.update_dense(kernels.sgd(1.0), g[:, :4], g)
    with pytest.raises(ValueError, match="rows"):
        kernels.update_dense(kernels.sgd(1.0), g[:4], g)
    with pytest.raises(ValueError, match="rows"):
        kernels.rebuild(u[:, :4].copy(), v, g, 0, 8, 4)
    with pytest.raises(ValueError, match="rows"):
        kernels.rebuild(u, v, g, first=1)
    with pytest.raises(ValueError, match="rows"):
        kernels.rebuild(u, v, g[:4], 0, 5, -3)
    with pytest.raises(TypeError, match="like the result"):
        kernels.rebuild(u, v, g.astype(np.float32))
    with pytest.raises(TypeError, match="the result must be C-contiguous"):
        kernels.rebuild(u, v, np.asfortranarray(g), threads=2)
    g.flags.writeable = False
    with pytest.raises(TypeError, match="writeable"):
        kernels.rebuild(u, v, g)
    g.flags.writeable = True
    with pytest.raises(ValueError, match="threshold"):
        kernels.shrink_rows(g, -1.0)
    with pytest.raises(ValueError, match="radius"):
        kernels.project_rows(g, 0.0)
    with pytest.raises(ValueError, match="elements"):
        kernels.reduce(g, 0, 31)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_project_rows(rng, dtype):
    w = rng.standard_normal((9, 30)).astype(dtype)
    w[3] *= 0.1
    w[4] = 0
    expected = w * np.minimum(1, 2 / np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-30))
    expected[8] = w[8]
    inside = w[3].copy()
    kernels.project_rows(w, 2.0, 0, 8)
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    assert (w[3] == inside).all()
    large = 1e30 if dtype == np.float32 else 1e200  # whose square overflows
    w[0], w[1, 0], w[2, 0] = large, np.nan, np.inf
    before = w[1].copy()
    kernels.project_rows(w, 1.0)
    np.testing.assert_allclose(w[0], 1 / np.sqrt(30), rtol=1e-5)
    np.testing.assert_array_equal(w[1], before)
    assert np.isnan(w[2, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reduce_adds_rows_in_order(rng, dtype):
    parts = rng.standard_normal((5, 3000)).astype(dtype)
    expected = parts.copy()
    for part in parts[1:]:
        expected[0, 10:2990] += part[10:2990]
    kernels.reduce(parts, 10, 2990)
    np.testing.assert_array_equal(parts, expected)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("columns", [1, 70, 5000, 21504])
def test_scratch_serves_whatever_has_no_more_samples(dtype, columns, rng):
    """An exchange plans its scratch for the most samples, to update or to accumulate, and may have fewer."""
    rows = 30
    w, s, t = (np.zeros((rows, columns), dtype) for _ in range(3))
    numbers = kernels.adam(0.1, 1, (0.9, 0.99), 1e-8).numbers(w.dtype)
    for planned in (1, 20, 33, 64, 200, 256, 300):
        room = kernels.room_for(planned, columns, w.itemsize)
        guarded = np.full(room + 4096, 7, dtype)
        for depth in {planned, planned - 1, min(planned, 200), min(planned, 64), min(planned, 32)}:
            u, v = rng.standard_normal((depth, rows)).astype(dtype), rng.standard_normal((depth, columns)).astype(dtype)
            assert _products.accumulate(u, v, w, 0, 0, rows, True, 1.0, 1.0, guarded[:room]) == status.DONE
            assert (guarded[room:] == 7).all()
            assert _updates.update(ADAM, numbers, u, v, w, s, t, 3, 0, 0, rows, 1.0, guarded[:room]) == status.DONE
            assert (guarded[room:] == 7).all()


def test_too_little_scratch_is_refused(rng):
    """A kernel says how much it lacks, and has changed nothing."""
    w, s, t = rng.standard_normal((3, 40, 500))
    before = w.copy()
    numbers = kernels.adam(0.1, 1, (0.9, 0.99), 1e-8).numbers(w.dtype)
    u, v = rng.standard_normal((300, 40)), rng.standard_normal((300, 500))
    for call in (
        lambda scratch: _products.accumulate(u, v, w, 0, 0, 40, True, 1.0, 1.0, scratch),
        lambda scratch: _updates.update(ADAM, numbers, u, v, w, s, t, 3, 0, 0, 40, 1.0, scratch),
    ):
        room = call(np.empty(0))
        assert room > 0
        assert call(np.empty(room - 1)) == room
        np.testing.assert_array_equal(w, before)
        assert call(np.empty(room)) == status.DONE
        assert (w != before).all()
        w[:] = before
