"""Sparse products equal those of the dense kernels, which tests compare with NumPy, bit for bit; and touch no more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

import sfb.kernels as kernels
from sfb.kernels import sparse

DTYPES = [np.float32, np.float64]
RULES = {
    "assign": kernels.assign(),
    "sgd": kernels.sgd(0.1),
    "decay": kernels.sgd(0.1, 0.0, 0.5),
    "momentum": kernels.sgd(0.1, 0.9, 0.01),
    "nesterov": kernels.sgd(0.1, 0.9, 0.01, True),
    "adam": kernels.adam(0.1, 3, (0.8, 0.9), 1e-3, 0.1),
    "adagrad": kernels.adagrad(0.1, 1e-3),
    "adagrad with decay": kernels.adagrad(0.1, 1e-3, 0.5),
    "proximal": kernels.proximal(0.1, 0.3, 0.2),
    "plain proximal": kernels.proximal(0.1),
}
# Those that leave elements without a gradient as they are.
LOCAL = {"sgd", "adagrad", "plain proximal"}


def draw(rng, samples, shape, dtype, filled=0.2):
    u = rng.standard_normal((samples, shape[0])).astype(dtype)
    v = random_array((samples, shape[1]), density=filled, format="csr", dtype=dtype, rng=rng)
    v.data[:] = rng.standard_normal(v.nnz)
    v.sort_indices()
    return u, v


def packed(ranks, shape, dtype):
    """Return the parts of several ranks, each in its place of one array of words."""
    samples = np.array([len(u) for u, _ in ranks])
    nonzeros = np.array([v.nnz for _, v in ranks])
    sizes = sparse.message_words(samples, nonzeros, shape[0], np.dtype(dtype).itemsize)
    offsets = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    words = np.full(int(sizes.sum()), -1)
    for (u, v), low, size in zip(ranks, offsets, sizes, strict=True):
        sparse.pack(u, v, words[low : low + size])
    return sparse.unpack(words, samples, nonzeros, offsets, shape, dtype)


def arrays(rng, rule, shape, dtype):
    w = rng.standard_normal(shape).astype(dtype)
    return w, [rng.random(shape).astype(dtype) for _ in range(rule.states)]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (37, 700), (16, 2049)], ids=str)
def test_rules_give_the_bits_of_dense_factors(rng, shape, dtype, name):
    rule = RULES[name]
    u, v = draw(rng, 50, shape, dtype)
    product = sparse.order(sparse.parts_of(u, v))
    w, states = arrays(rng, rule, shape, dtype)
    expected, its = w.copy(), [state.copy() for state in states]
    kernels.update(rule, u, v.toarray(), expected, its)
    sparse.update(rule, product, w, states)
    for got, wanted in zip([w, *states], [expected, *its], strict=True):
        assert got.tobytes() == wanted.tobytes()


@given(
    st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1)), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_parts_of_several_ranks_in_any_rows(ranks, rows, columns, dtype, seed):
    rng, shape = np.random.default_rng(seed), (rows, columns)
    drawn = [draw(rng, samples, shape, dtype, filled) for samples, filled in ranks]
    parts = packed(drawn, shape, dtype)
    u, v = np.concatenate([u for u, _ in drawn]), np.concatenate([v.toarray() for _, v in drawn])
    assert (parts.depth, parts.nonzeros) == (len(u), np.count_nonzero(v))
    product = sparse.order(parts)
    np.testing.assert_array_equal(product.touched, np.flatnonzero(v.any(axis=0)))
    w = rng.standard_normal(shape).astype(dtype)
    expected, got, split = w.copy(), w.copy(), w.copy()
    kernels.accumulate(u, v, expected, alpha=-0.5)
    sparse.accumulate(product, got, alpha=-0.5)
    middle = int(rng.integers(0, rows + 1))
    sparse.accumulate(product, split, middle, rows, alpha=-0.5)
    sparse.accumulate(product, split[:middle], 0, middle, alpha=-0.5, threads=2)
    assert got.tobytes() == expected.tobytes() == split.tobytes()
    np.testing.assert_allclose(
        sparse.norm(product), np.linalg.norm(u.astype(float).T @ v.astype(float)), rtol=1e-12, atol=1e-300
    )


@pytest.mark.parametrize("samples", [255, 256, 257, 600])
def test_deep_products(rng, samples):
    shape = (20, 90)
    u, v = draw(rng, samples, shape, np.float32, 0.7)
    g, expected = (np.empty(shape, np.float32) for _ in range(2))
    sparse.rebuild(sparse.order(sparse.parts_of(u, v)), g)
    kernels.rebuild(u, v.toarray(), expected)
    assert g.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["assign", "sgd", "momentum", "adagrad"])
def test_threads_share_the_rows(rng, name):
    shape, rule = (70, 3000), RULES[name]
    u, v = draw(rng, 100, shape, np.float32, 0.2)
    product = sparse.order(sparse.parts_of(u, v))
    results = []
    start, its = arrays(rng, rule, shape, np.float32)
    for threads in (1, 3):  # there is work for as many
        w, states = start.copy(), [state.copy() for state in its]
        sparse.update(rule, product, w, states, threads=threads)
        results.append(w.tobytes() + b"".join(state.tobytes() for state in states))
    assert results[0] == results[1]


def test_rows_of_a_part(rng):
    """Row ``first`` of the result belongs to column 0 of u."""
    u, v = draw(rng, 5, (30, 40), np.float64)
    product = sparse.order(sparse.parts_of(u, v))
    whole, part, inside = np.empty((30, 40)), np.empty((12, 40)), np.zeros((50, 40))
    sparse.rebuild(product, whole)
    sparse.rebuild(product, part, 0, 12, -9)
    sparse.rebuild(product, inside, first=15)
    np.testing.assert_array_equal(part, whole[9:21])
    np.testing.assert_array_equal(inside[15:45], whole)
    assert not inside[:15].any()
    assert not inside[45:].any()


@pytest.mark.parametrize("name", RULES)
def test_only_columns_of_non_zeros_are_touched_where_the_rule_allows_it(rng, name):
    rule, shape = RULES[name], (9, 600)
    assert rule.skips_zeros == (name in LOCAL)
    u, v = draw(rng, 4, shape, np.float32, 0.01)
    w, states = arrays(rng, rule, shape, np.float32)
    empty = ~v.toarray().any(axis=0)
    signal = np.float32(np.nan)  # survives unless it is written
    w[:, empty] = signal
    for state in states:
        state[:, empty] = signal
    sparse.update(rule, sparse.order(sparse.parts_of(u, v)), w, states)
    assert np.isfinite(w[:, ~empty]).all()
    if name in LOCAL:
        assert np.isnan(w[:, empty]).all()
    if name == "assign":
        assert not w[:, empty].any()


def test_a_factor_that_is_not_a_number_shows_everywhere(rng):
    for name, rule in RULES.items():
        if name != "assign":
            u, v = draw(rng, 3, (5, 50), np.float32, 0.05)
            w, states = arrays(rng, rule, (5, 50), np.float32)
            sparse.update(rule, sparse.order(sparse.parts_of(u, v)), w, states, alpha=np.nan)
            assert np.isnan(w).all(), name


def test_columns_of_any_number():
    """Non-zeros are ordered digit by digit, of as many digits as D has."""
    for columns in (1, 2, 2048, 2049, 1 << 22, (1 << 22) + 1, (1 << 31) - 1):
        last = columns - 1
        v = csr_array((np.array([1.0, 2.0, 4.0]), np.array([last, 0, last]), np.array([0, 1, 2, 3])), (3, columns))
        product = sparse.order(sparse.parts_of(np.array([[1.0], [3.0], [5.0]]), v))
        expected = {0: [(1, 2.0)], last: [(0, 1.0), (2, 4.0)]}
        if last == 0:
            expected = {0: [(0, 1.0), (1, 2.0), (2, 4.0)]}
        found = {}
        for column, low, high in zip(product.touched, product.begins, product.begins[1:], strict=False):
            found[int(column)] = list(zip(product.samples[low:high], product.values[low:high], strict=True))
        assert found == expected


def test_norms_of_any_magnitude():
    for big, small in ((1e200, 1e-200), (1e-200, 1e200)):
        u, v = np.array([[big, 0], [0, small]]), csr_array(np.array([[small, 0], [0, big]]))
        assert sparse.norm(sparse.order(sparse.parts_of(u, v))) == pytest.approx(2**0.5)
        assert sparse.norm(sparse.order(sparse.parts_of(np.full((1, 2), big), csr_array([[3 * big]])))) in (
            pytest.approx(np.inf),
            0.0,
        )
    single = sparse.order(sparse.parts_of(np.full((1, 1), 1e30, np.float32), csr_array(np.full((1, 1), 1e30, "f4"))))
    assert sparse.norm(single) == pytest.approx(1e60)
    assert sparse.scaled(single, -100).u == pytest.approx(1e30 * 2.0**-100)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_of_what_is_not_finite(value):
    v = csr_array(np.array([[1.0, 0.0], [0.0, 0.0]]))
    u = np.array([[value], [1.0]])
    assert not np.isfinite(sparse.norm(sparse.order(sparse.parts_of(u, v))))
    # A sample without non-zeros adds nothing, whatever its u.
    assert sparse.norm(sparse.order(sparse.parts_of(u[::-1].copy(), v))) == 1
    v.data[0] = value
    assert not np.isfinite(sparse.norm(sparse.order(sparse.parts_of(np.ones((2, 1)), v))))


def test_nothing(rng):
    for samples, shape in ((0, (3, 4)), (5, (3, 4)), (2, (0, 4)), (0, (3, 0))):
        u, v = draw(rng, samples, shape, np.float64, 0)
        product = sparse.order(sparse.parts_of(u, v))
        g = np.full(shape, np.nan)
        sparse.rebuild(product, g)
        assert not g.any()
        assert sparse.norm(product) == 0


def test_arguments_that_do_not_fit(rng):
    u, v = draw(rng, 3, (4, 5), np.float64)
    product = sparse.order(sparse.parts_of(u, v))
    with pytest.raises(TypeError, match="float64 like the factors"):
        sparse.rebuild(product, np.empty((4, 5), np.float32))
    with pytest.raises(ValueError, match="5 columns"):
        sparse.rebuild(product, np.empty((4, 6)))
    with pytest.raises(ValueError, match="rows"):
        sparse.rebuild(product, np.empty((3, 5)))
    with pytest.raises(TypeError, match="writeable"):
        sparse.rebuild(product, np.frombuffer(bytes(160)).reshape(4, 5))
    with pytest.raises(ValueError, match="1 states"):
        sparse.update(kernels.adagrad(0.1, 1e-3), product, np.empty((4, 5)))
