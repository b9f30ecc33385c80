import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array, csr_matrix

from sfb import Factors

sizes = st.integers(0, 12)
dtypes = st.sampled_from([np.float32, np.float64])


def make(samples, rows, columns, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    u, v = (rng.standard_normal((samples, n)).astype(dtype) for n in (rows, columns))
    return Factors(u, v)


@given(sizes, st.integers(1, 12), st.integers(1, 12), dtypes)
def test_stands_for_the_dense_product(samples, rows, columns, dtype):
    g = make(samples, rows, columns, dtype)
    dense = g.u.T @ g.v
    assert g.shape == dense.shape == (rows, columns)
    assert g.dtype == dense.dtype == dtype
    assert len(g) == samples
    assert g.nbytes == samples * (rows + columns) * np.dtype(dtype).itemsize
    np.testing.assert_array_equal(g.dense(), dense)
    np.testing.assert_array_equal(g.T.dense(), g.v.T @ g.u)


@given(sizes, sizes, st.integers(1, 9), st.integers(1, 9))
def test_norm_and_inner_product_come_from_gram_matrices(samples, others, rows, columns):
    g, h = make(samples, rows, columns), make(others, rows, columns, seed=1)
    np.testing.assert_allclose(g.norm(), np.linalg.norm(g.dense()), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(g.inner(h), np.vdot(g.dense(), h.dense()), rtol=1e-10, atol=1e-10)


@given(sizes, sizes, st.integers(1, 9), st.integers(1, 9))
def test_sum_concatenates(samples, others, rows, columns):
    g, h = make(samples, rows, columns), make(others, rows, columns, seed=1)
    assert len(g + h) == samples + others
    np.testing.assert_allclose((g + h).dense(), g.dense() + h.dense(), atol=1e-12)
    np.testing.assert_array_equal(Factors.concatenate([g, h]).dense(), (g + h).dense())


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_scaling(shape):
    g = make(4, *shape)
    for scaled, factor in ((2.5 * g, 2.5), (g * np.float64(0.5), 0.5), (-g, -1), (g / 4, 0.25)):
        np.testing.assert_allclose(scaled.dense(), factor * g.dense())
    assert (np.float64(2) * make(1, 2, 2, np.float32)).dtype == np.float32


def test_products_with_vectors_and_matrices():
    g = make(3, 4, 5)
    rng = np.random.default_rng(2)
    for x in (rng.standard_normal(5), rng.standard_normal((5, 2))):
        np.testing.assert_allclose(g @ x, g.dense() @ x)
    for x in (rng.standard_normal(4), rng.standard_normal((2, 4))):
        np.testing.assert_allclose(x @ g, x @ g.dense())


def test_products_never_form_the_matrix():
    g = make(1, 200_000, 200_000, np.float32)  # 160 GB if dense
    assert (g @ np.ones(200_000, np.float32)).shape == (200_000,)
    assert g.norm() > 0
    assert len(g + g) == 2


def test_keeps_arrays_and_copies_on_request():
    u, v = np.ones((2, 3)), np.ones((2, 4))
    assert Factors(u, v).u is u
    copied = Factors(u, v, copy=True)
    assert not np.shares_memory(copied.u, u)
    strided = np.ones((4, 3))[::2]
    np.testing.assert_array_equal(Factors(strided, v, copy=True).u, strided)


def test_pickle():
    g = make(2, 3, 4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(g)).dense(), g.dense())


class OnGpu:
    __cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012


good = np.ones((2, 3))


@pytest.mark.parametrize(
    ("u", "v", "error", "message"),
    [
        (np.ones(3), good, ValueError, "2 dimensions"),
        (np.ones((2, 3, 1)), good, ValueError, "2 dimensions"),
        (np.ones((3, 3)), good, ValueError, "one row per sample"),
        (good.astype(np.float32), good, ValueError, "same dtype"),
        (good.astype(int), good, TypeError, "float32 or float64"),
        (good.astype(object), good, TypeError, "float32 or float64"),
        (good.astype(complex), good, TypeError, "float32 or float64"),
        (good.astype(np.float16), good, TypeError, "float32 or float64"),
        (good.astype(">f8"), good, TypeError, "byte order"),
        (np.ones((3, 2)).T, good, ValueError, "Fortran"),
        (np.ones((2, 6))[:, ::2], good, ValueError, "contiguous"),
        (np.ma.masked_array(good, mask=True), good, TypeError, "plain NumPy"),
        (np.frombuffer(bytes(49), np.uint8)[1:].view(np.float64).reshape(2, 3), good, ValueError, "aligned"),
        ([[1.0]], good, TypeError, "NumPy array"),
        (OnGpu(), good, TypeError, "GPU"),
    ],
)
def test_refuses(u, v, error, message):
    with pytest.raises(error, match=message):
        Factors(u, v)
    with pytest.raises(error, match=message):
        Factors(v, u)


def test_refuses_unlike_parts():
    with pytest.raises(ValueError, match="at least one"):
        Factors.concatenate([])
    with pytest.raises(ValueError, match="expected factors of a"):
        make(1, 2, 3) + make(1, 3, 2)
    with pytest.raises(ValueError, match="expected factors of a"):
        make(1, 2, 3).inner(make(1, 2, 3, np.float32))


def test_norm_and_inner_product_of_any_magnitude():
    one = np.array([[3.0, 4.0]])
    for big, small in ((1e200, 1e-200), (1e-200, 1e200)):
        g = Factors(big * one, small * np.eye(1, 3))
        assert g.norm() == pytest.approx(5)
        assert g.inner(g) == pytest.approx(25)
        rows = Factors(np.array([[big, 0], [0, small]]), np.array([[small, 0], [0, big]]))
        assert rows.norm() == pytest.approx(2**0.5)
    long = Factors(1e200 * one, np.ones((1, 1)))
    assert long.norm() == pytest.approx(5e200)
    assert long.inner(long) == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norm_of_what_is_not_finite(value):
    for u, v in ((np.array([[value, 1.0]]), np.zeros((1, 3))), (np.ones((1, 2)), np.array([[value, 0.0]]))):
        for g in (Factors(u, v), Factors(v, u)):
            assert not np.isfinite(g.norm())


def make_csr(samples, rows, columns, dtype=np.float64, seed=0, kind=csr_array):
    g = make(samples, rows, columns, dtype, seed)
    g.v[np.random.default_rng(seed).random(g.v.shape) < 0.7] = 0
    return Factors(g.u, kind(g.v)), g


kinds = st.sampled_from([csr_array, csr_matrix])


@given(sizes, st.integers(1, 12), st.integers(1, 12), dtypes, kinds)
def test_csr_stands_for_the_dense_product(samples, rows, columns, dtype, kind):
    g, dense = make_csr(samples, rows, columns, dtype, kind=kind)
    assert g.sparse
    assert not dense.sparse
    assert g.shape == dense.shape
    assert (g.dtype, len(g)) == (dense.dtype, samples)
    assert g.nonzeros == np.count_nonzero(dense.v)
    assert dense.nonzeros == dense.v.size
    assert g.nbytes == g.u.nbytes + g.v.data.nbytes + g.v.indices.nbytes + g.v.indptr.nbytes
    limit = {"rtol": 1e-5 if dtype == np.float32 else 1e-12, "atol": 1e-5 if dtype == np.float32 else 1e-12}
    np.testing.assert_allclose(g.dense(), dense.dense(), **limit)
    out = np.empty(g.shape, dtype)
    assert g.dense(out) is out
    np.testing.assert_array_equal(out, g.dense())
    assert type(g.dense()) is np.ndarray
    assert g.dense().flags.c_contiguous
    assert repr(g).endswith(f"CSR with {g.nonzeros} non-zeros)")
    copied = pickle.loads(pickle.dumps(g))
    assert type(copied.v) is kind
    np.testing.assert_array_equal(copied.dense(), g.dense())


@given(sizes, sizes, st.integers(1, 9), st.integers(1, 9), kinds)
def test_csr_in_norms_inner_products_and_sums(samples, others, rows, columns, kind):
    (g, a), (h, b) = make_csr(samples, rows, columns, kind=kind), make_csr(others, rows, columns, seed=1, kind=kind)
    np.testing.assert_allclose(g.norm(), np.linalg.norm(a.dense()), rtol=1e-10, atol=1e-12)
    for left, right in ((g, h), (g, b), (a, h)):
        np.testing.assert_allclose(left.inner(right), np.vdot(a.dense(), b.dense()), rtol=1e-10, atol=1e-10)
        total = left + right
        assert total.sparse == (left.sparse and right.sparse)
        assert len(total) == samples + others
        np.testing.assert_allclose(total.dense(), a.dense() + b.dense(), atol=1e-12)


@pytest.mark.parametrize("kind", [csr_array, csr_matrix])
def test_csr_scaled_and_multiplied(kind):
    g, dense = make_csr(4, 5, 3, kind=kind)
    for scaled, factor in ((2.5 * g, 2.5), (g * np.float64(0.5), 0.5), (-g, -1), (g / 4, 0.25)):
        assert scaled.v is g.v
        np.testing.assert_allclose(scaled.dense(), factor * dense.dense())
    rng = np.random.default_rng(2)
    for x in (rng.standard_normal(3), rng.standard_normal((3, 2))):
        assert type(g @ x) is np.ndarray
        np.testing.assert_allclose(g @ x, dense @ x)
    for x in (rng.standard_normal(5), rng.standard_normal((2, 5))):
        assert type(x @ g) is np.ndarray
        np.testing.assert_allclose(x @ g, x @ dense)
    with pytest.raises(TypeError, match="no transpose"):
        _ = g.T
    with pytest.raises(ValueError, match="out must be"):
        g.dense(np.empty((5, 4)))


def test_csr_is_kept_or_copied_in_canonical_form():
    u, v = np.ones((2, 3)), csr_array(np.eye(2, 4))
    assert Factors(u, v).v is v
    copied = Factors(u, v, copy=True)
    assert not np.shares_memory(copied.v.data, v.data)
    # Columns that fall, and one that occurs twice.
    v = csr_array((np.array([1.0, 2.0, 4.0, 8.0]), np.array([3, 0, 2, 2]), np.array([0, 2, 4])), (2, 4))
    g = Factors(u, v)
    assert v.indices.tolist() == [3, 0, 2, 2]
    assert (g.v.indices.tolist(), g.v.data.tolist(), g.v.indptr.tolist()) == ([0, 3, 2], [2, 1, 12], [0, 2, 3])
    wide = csr_array((np.ones(1), np.array([5], np.int64), np.array([0, 1], np.int64)), (1, 1 << 30))
    assert Factors(np.ones((1, 2)), wide).nonzeros == 1


def test_csr_norms_of_any_magnitude_and_of_what_is_not_finite():
    for big, small in ((1e200, 1e-200), (1e-200, 1e200)):
        rows = Factors(np.array([[big, 0], [0, small]]), csr_array(np.array([[small, 0], [0, big]])))
        assert rows.norm() == pytest.approx(2**0.5)
    for value in (np.nan, np.inf):
        v = csr_array(np.array([[1.0, 0.0], [0.0, 0.0]]))
        assert not np.isfinite(Factors(np.array([[value], [1.0]]), v).norm())
        assert Factors(np.array([[1.0], [value]]), v).norm() == 1  # a sample without non-zeros adds nothing
        v.data[:] = value
        assert not np.isfinite(Factors(np.ones((2, 1)), v).norm())


@pytest.mark.parametrize(
    ("u", "v", "error", "message"),
    [
        (good, csc_array(np.eye(2, 3)), TypeError, r"got csc; convert it with \.tocsr"),
        (good, csr_array(np.eye(2, 3, dtype=int)), TypeError, "float32 or float64"),
        (good, csr_array(np.eye(2, 3, dtype=complex)), TypeError, "float32 or float64"),
        (good, csr_array(np.eye(2, 3, dtype="f4")), ValueError, "same dtype"),
        (good, csr_array(np.eye(3, 3)), ValueError, "one row per sample"),
        (good, csr_array((2, 1 << 31)), ValueError, "fewer than 2³¹ columns"),
        (csr_array(np.eye(2, 3)), good, TypeError, r"u must be a NumPy array, got a sparse csr one"),
    ],
)
def test_refuses_csr(u, v, error, message):
    for copy in (False, True):
        with pytest.raises(error, match=message):
            Factors(u, v, copy=copy)


def test_refuses_csr_whose_parts_do_not_fit():
    for name, values, message in (
        ("indices", [0, 3], "indices must lie in 0 to 2"),
        ("indices", [-1, 0], "indices must lie in 0 to 2"),
        ("indptr", [0, 2, 1], "indptr must rise"),
        ("indptr", [1, 1, 2], "indptr must rise"),
        ("indptr", [0, 1, 3], "indptr must rise"),
    ):
        v = csr_array(np.eye(2, 3))
        getattr(v, name)[:] = values
        with pytest.raises(ValueError, match=message):
            Factors(good, v)


def test_scipy_is_imported_by_those_who_use_it():
    code = "import sys, numpy, sfb; sfb.Factors(numpy.ones((1, 2)), numpy.ones((1, 3))); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "scipy" not in done.stdout.split()


def test_arrays_in_files_are_dense(tmp_path):
    v = np.memmap(tmp_path / "v", np.float64, "w+", shape=(2, 4))
    v[:] = 1
    g = Factors(np.ones((2, 3)), v)
    assert not g.sparse
    assert (g.nbytes, g.norm()) == (112, pytest.approx(48**0.5))
