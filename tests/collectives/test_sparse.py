"""CSR v: every algorithm and receiver gives the sum of the oracle, and only non-zeros travel."""

from collections import Counter
from dataclasses import replace

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import even
from scipy.sparse import csr_array, csr_matrix, random_array

import sfb
from sfb.collectives import what_if
from sfb.collectives.algorithms import SPARSE_ALGORITHMS
from sfb.collectives.sparse import MOST_NONZEROS, MOST_SAMPLES, joined_size, room_for, split_sizes
from sfb.kernels.sparse import message_words

NAMES = [*SPARSE_ALGORITHMS, "auto"]
RULES = [
    (sfb.optim.SGD, oracle.sgd, {"lr": 0.1}),
    (sfb.optim.SGD, oracle.sgd, {"lr": 0.1, "weight_decay": 0.05}),
    (sfb.optim.SGD, oracle.sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    (sfb.optim.Adam, oracle.adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1}),
    (sfb.optim.Adagrad, oracle.adagrad, {"lr": 0.01, "eps": 0.1}),
    (sfb.optim.Proximal, oracle.proximal, {"lr": 0.1, "l1": 0.3, "l2": 0.2}),
]


def draw(rng, samples, shape, dtype, filled=0.1):
    """Return random (u, v) for each number of samples, v in CSR form; some rows are empty."""
    parts = []
    for s in samples:
        v = random_array((s, shape[1]), density=filled, format="csr", dtype=dtype, rng=rng)
        v.data[:] = rng.standard_normal(v.nnz)
        v.sort_indices()
        parts.append((rng.standard_normal((s, shape[0])).astype(dtype), v))
    return parts


def dense(parts):
    return [(u, v.toarray()) for u, v in parts]


def array(comm, shape, dtype, shared, fill):
    """Return a filled array, shared by the ranks of a node or not."""
    result = comm.shared(shape, dtype) if shared else np.empty(shape, dtype)
    if not shared or comm.node.rank == 0:
        result[...] = fill
    comm.Barrier()
    return result


def case(rng, ranks, trial):
    shape = tuple(int(n) for n in rng.integers(1, (40, 300)[trial % 2], 2))
    samples = [int(s) for s in rng.integers(0, (3, 30)[trial // 2 % 2], ranks)]
    return shape, samples, (0.9, 0.0, 0.1, 0.02)[trial % 4]


both = pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])


@pytest.mark.mpi
@both
@pytest.mark.parametrize("trial", range(4))
def test_sum_into_an_array(any_comm, world, rng, trial, shared):
    comm, dtype = any_comm, (np.float32, np.float64)[trial % 2]
    shape, samples, filled = case(rng, world.size, trial)
    parts = draw(rng, samples, shape, dtype, filled)
    expected, bound = oracle.total(dense(parts), shape), oracle.bound(dense(parts), shape, dtype)
    bits = {}
    for algorithm in NAMES:
        g = array(comm, shape, dtype, shared, np.nan)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
        assert (abs(g - expected) <= bound).all(), (algorithm, shape, samples)
        oracle.assert_same_bits(world, g)
        bits[algorithm] = g.tobytes()
    assert bits["broadcast"] == bits["node"]
    comm.Allreduce(sfb.Factors(*dense(parts)[world.rank]), g, algorithm="broadcast")
    assert bits["broadcast"] == g.tobytes()  # as if v were dense


@pytest.mark.mpi
@both
@pytest.mark.parametrize("which", range(len(RULES)))
def test_sum_into_an_optimizer(any_comm, world, rng, which, shared):
    comm, (optimizer, textbook, rule) = any_comm, RULES[which]
    dtype = (np.float32, np.float64)[which % 2]
    shape, samples, _ = case(rng, world.size, which)
    start = rng.standard_normal(shape).astype(dtype)
    steps = [draw(rng, samples, shape, dtype) for _ in range(3)]
    expected = textbook(start, [oracle.total(dense(parts), shape) for parts in steps], **rule)
    slack = 20 * np.finfo(dtype).eps * (1 + abs(expected))
    slack += sum(oracle.bound(dense(parts), shape, dtype) for parts in steps)
    bits = {}
    for algorithm in NAMES:
        w = array(comm, shape, dtype, shared, start)
        receiver = optimizer(w, **rule)
        for parts in steps:
            comm.Allreduce(sfb.Factors(*parts[world.rank]), receiver, algorithm=algorithm)
        assert (abs(w - expected) <= slack + 1e-6 * (dtype == np.float32)).all(), (algorithm, shape, samples)
        oracle.assert_same_bits(world, w)
        bits[algorithm] = w.tobytes()
    assert bits["broadcast"] == bits["node"]


@pytest.mark.mpi
@both
@pytest.mark.parametrize("max_norm", [1.0, 1e6])
def test_clipping_by_the_norm_of_the_sum(any_comm, world, rng, max_norm, shared):
    comm, shape = any_comm, (30, 70)
    start = rng.standard_normal(shape)
    parts = draw(rng, [3] * world.size, shape, np.float64)
    total = oracle.total(dense(parts), shape)
    expected = start - 0.1 * total * min(1, max_norm / np.linalg.norm(total))
    for algorithm in ("broadcast", "node", "auto"):
        w = array(comm, shape, np.float64, shared, start)
        receiver = sfb.optim.SGD(w, lr=0.1, max_norm=max_norm)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), receiver, algorithm=algorithm)
        np.testing.assert_allclose(w, expected, rtol=1e-6, atol=1e-8)
        oracle.assert_same_bits(world, w)
    with pytest.raises(ValueError, match="max_norm needs the factors"):
        comm.Allreduce(sfb.Factors(*parts[world.rank]), receiver, algorithm="dense")


@pytest.mark.mpi
def test_clipping_what_overflows_when_squared_or_is_not_finite(any_comm, world):
    last = world.rank == world.size - 1
    for value in (1e20, np.nan, np.inf):
        u, v = np.eye(2, 8, dtype="f4"), csr_array(np.diag(np.full(8, 1e20, "f4"))[:2])
        v.data[0] = value if last else 1e20
        w = np.zeros((8, 8), "f4")
        any_comm.Allreduce(sfb.Factors(u, v), sfb.optim.SGD(w, lr=1.0, max_norm=1.0))
        if np.isfinite(value):
            np.testing.assert_allclose(w, -np.diag([0.5**0.5] * 2 + [0] * 6), rtol=1e-5)
        else:
            assert np.isnan(w).all()


@pytest.mark.mpi
def test_rows_that_are_shrunk(any_comm, world, rng):
    """Proximal(rows=) does more than a rule of the kernels."""
    parts = draw(rng, [4] * world.size, (6, 50), np.float64)
    ws = [rng.standard_normal((6, 50)) for _ in range(2)]
    ws[1][:] = ws[0]
    for w, its in zip(ws, (parts, dense(parts)), strict=True):
        any_comm.Allreduce(sfb.Factors(*its[world.rank]), sfb.optim.Proximal(w, lr=0.1, rows=0.5))
    np.testing.assert_allclose(*ws, rtol=1e-12)


@pytest.mark.mpi
def test_only_columns_of_non_zeros_are_touched(any_comm, world):
    """Elements without a gradient keep their bits, even those that a computation would change."""
    w = np.full((3, 5000), np.nan, "f4")
    w[:, [7, 4000]] = 1
    v = csr_matrix((np.ones(2, "f4"), [7, 4000], [0, 1, 2]), (2, 5000))
    for rule in (sfb.optim.SGD(w, lr=0.5), sfb.optim.Adagrad(w, lr=0.5)):
        before = w.copy()
        for algorithm in ("node", "broadcast"):
            any_comm.Allreduce(sfb.Factors(np.ones((2, 3), "f4"), v), rule, algorithm=algorithm)
        changed = (w != before) & ~np.isnan(w)
        assert set(np.flatnonzero(changed.all(axis=0))) == {7, 4000}


@pytest.mark.mpi
def test_received_bytes_follow_the_non_zeros(any_comm, world, rng):
    comm, shape = any_comm, (20, 3000)
    g = np.empty(shape, np.float32)
    for filled in (0.001, 0.01):
        parts = draw(rng, [5 + rank for rank in range(world.size)], shape, np.float32, filled)
        sizes = [8 * int(message_words(len(u), v.nnz, 20, 4)) for u, v in parts]
        comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm="broadcast")
        assert comm.last_exchange.wire_bytes == sum(sizes) - sizes[world.rank]
        payload = sum(u.nbytes + v.nnz * 8 + 8 * (len(u) + 1) for u, v in parts)
        assert payload <= sum(sizes) <= payload + 24 * world.size
        comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm="node")
        if comm.node.size == world.size:
            assert comm.last_exchange.wire_bytes == sum(sizes) - sizes[world.rank]


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", NAMES)
def test_blocking_nonblocking_and_persistent_calls(any_comm, world, rng, algorithm):
    """The number of non-zeros changes from call to call, also beyond that for which a plan was made."""
    comm, shape = any_comm, (30, 200)
    g, sums = np.empty(shape), []
    parts = [draw(rng, [20] * world.size, shape, np.float64, filled) for filled in (0.1, 0.11, 0.9, 0.0)]
    for its in parts:
        comm.Allreduce(sfb.Factors(*its[world.rank]), g, algorithm=algorithm)
        assert comm.last_exchange.algorithm == algorithm or algorithm == "auto"
        sums.append(g.copy())
    results = [np.empty(shape) for _ in parts]
    factors = [sfb.Factors(*its[world.rank]) for its in parts]
    requests = [comm.Iallreduce(f, r, algorithm=algorithm) for f, r in zip(factors, results, strict=True)]
    for request in requests[::-1]:
        request.Wait()
    if algorithm != "auto":  # which may choose another for another number
        if algorithm != "dense" or oracle.sums_alike(comm):
            assert [result.tobytes() for result in results] == [each.tobytes() for each in sums]
        else:
            np.testing.assert_allclose(results, sums, rtol=1e-12, atol=1e-12)
    persistent = sfb.Factors(*parts[0][world.rank])
    with comm.Allreduce_init(persistent, g, algorithm=algorithm) as plan:
        assert "non-zeros in CSR v" in plan.explain()
        for its in parts:
            persistent.v = its[world.rank][1]
            persistent.u[:] = its[world.rank][0]
            plan.Start()
            plan.Wait()
            expected = oracle.total(dense(its), shape)
            np.testing.assert_allclose(g, expected, rtol=1e-10, atol=1e-12)
            oracle.assert_same_bits(world, g)


@pytest.mark.mpi
def test_several_optimizers_under_way(any_comm, world, rng):
    """Exchanges with CSR and with dense v alternate in the queue, and one receiver takes two sums in order."""
    comm, shape = any_comm, (12, 90)
    w, other = np.zeros(shape), np.zeros(shape)
    rules = [sfb.optim.SGD(w, lr=0.1), sfb.optim.SGD(other, lr=0.1, momentum=0.5)]
    parts = draw(rng, [3] * world.size, shape, np.float64)
    full = dense(parts)
    kept = [sfb.Factors(*its[world.rank]) for its in (parts, full)]
    requests = [comm.Iallreduce(factors, rule) for _ in range(3) for rule in rules for factors in kept]
    for request in requests:
        request.Wait()
    total = oracle.total(full, shape)
    np.testing.assert_allclose(w, oracle.sgd(np.zeros(shape), [total] * 6, 0.1), rtol=1e-10)
    np.testing.assert_allclose(other, oracle.sgd(np.zeros(shape), [total] * 6, 0.1, 0.5), rtol=1e-10)


@pytest.mark.mpi
def test_bits_do_not_depend_on_where_ranks_lie(any_comm, world, rng):
    parts = draw(rng, [rank % 3 * 4 for rank in range(world.size)], (37, 400), np.float32)
    bits = set()
    for algorithm in ("node", "broadcast"):
        for g in (np.empty((37, 400), np.float32), any_comm.shared((37, 400))):
            any_comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
            bits.add(g.tobytes())
    u, v = (np.concatenate(arrays) for arrays in zip(*dense(parts), strict=True))
    g = np.empty((37, 400), np.float32)
    with sfb.Comm(type(world)(world.Split(world.rank))) as alone:
        alone.Allreduce(sfb.Factors(u, csr_array(v)), g)
    assert bits == {g.tobytes()}


@pytest.mark.mpi
def test_factors_beyond_max_bytes(world, rng):
    parts = draw(rng, [30] * world.size, (40, 500), np.float64)
    g, expected = np.empty((40, 500)), oracle.total(dense(parts), (40, 500))
    factors = sfb.Factors(*parts[world.rank])
    with sfb.Comm(world, max_bytes=10_000) as comm:
        comm.Allreduce(factors, g)
        np.testing.assert_allclose(g, expected, rtol=1e-10, atol=1e-12)
        if world.size > 1:
            assert comm.last_exchange.algorithm == "dense"
            for algorithm in ("node", "broadcast"):
                with pytest.raises(ValueError, match=r'within max_bytes, 10000.*"auto" or "dense"'):
                    comm.Allreduce(factors, g, algorithm=algorithm)
        comm.Allreduce(factors, g, algorithm="dense")
        np.testing.assert_allclose(g, expected, rtol=1e-10, atol=1e-12)


def refuse(world, call, error, message):
    """Assert that every rank raises the same error."""
    with pytest.raises(error, match=message) as caught:
        call()
    texts = world.allgather(str(caught.value))
    assert len(set(texts)) == 1
    return texts[0]


def good():
    return sfb.Factors(np.ones((2, 4)), csr_array(np.eye(2, 3)))


def broken(**arrays):
    """Return factors whose v has been changed after the check."""
    factors = good()
    for name, values in arrays.items():
        getattr(factors.v, name)[:] = values
    return factors


WRONG = {
    "column out of range": (lambda: broken(indices=[0, 3]), ValueError, "indices must lie in 0 to 2"),
    "negative column": (lambda: broken(indices=[0, -1]), ValueError, "indices must lie in 0 to 2"),
    "starts that fall": (lambda: broken(indptr=[0, 2, 1]), ValueError, "indptr must rise"),
    "more starts than non-zeros": (lambda: broken(indptr=[0, 1, 5]), ValueError, "indptr must rise"),
    "columns that fall": (lambda: broken(indptr=[0, 0, 2], indices=[2, 1]), ValueError, "sum_duplicates"),
    "dtype": (lambda: sfb.Factors(np.ones((2, 4), "f4"), csr_array(np.eye(2, 3, dtype="f4"))), ValueError, "dtype"),
    "shape": (lambda: sfb.Factors(np.ones((2, 4)), csr_array(np.eye(2, 5))), ValueError, "shape"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("who", ["all", "last"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_factors(any_comm, world, what, who):
    make, error, message = WRONG[what]
    culprit = who == "all" or world.rank == world.size - 1
    g = np.zeros((4, 3))
    factors = make() if culprit else good()
    refuse(world, lambda: any_comm.Allreduce(factors, g), error, message)
    assert not g.any()
    any_comm.Allreduce(good(), g)  # the communicator works on
    np.testing.assert_array_equal(g, world.size * np.ones((4, 1)) * [1, 1, 0])


@pytest.mark.mpi
@pytest.mark.parametrize("call", ["Allreduce", "Iallreduce", "Allreduce_init", "plan"])
def test_ranks_that_mix_dense_and_csr(any_comm, world, call):
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    factors = good() if world.rank else sfb.Factors(np.ones((2, 4)), np.eye(2, 3))
    g = np.zeros((4, 3))

    def exchange():
        request = getattr(any_comm, call)(factors, g)
        if call == "Iallreduce":
            request.Wait()

    for _ in range(2):
        text = refuse(world, exchange, sfb.MismatchError, "ranks disagree")
        assert "Factors with CSR v into" in text
        assert "Factors into" in text
        assert not g.any()
        any_comm.Allreduce(sfb.Factors(np.ones((2, 4)), np.eye(2, 3)), np.empty((4, 3)))  # cached for the next time


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", ["pipelined", "sharded"])
def test_algorithms_that_do_not_take_csr(any_comm, world, algorithm):
    text = refuse(
        world, lambda: any_comm.Allreduce(good(), np.zeros((4, 3)), algorithm=algorithm), ValueError, "CSR v: name one"
    )
    assert "auto, node, broadcast, dense" in text


@pytest.mark.mpi
def test_sixteen_bits_on_the_wire_do_not_take_csr(world):
    factors = sfb.Factors(np.ones((2, 4), "f4"), csr_array(np.eye(2, 3, dtype="f4")))
    with sfb.Comm(world, wire="bfloat16") as comm:
        refuse(world, lambda: comm.Allreduce(factors, np.zeros((4, 3), "f4")), TypeError, "dense v only")


@pytest.mark.mpi
def test_a_plan_keeps_to_csr(comm, world):
    factors = good()
    plan = comm.Allreduce_init(factors, np.empty((4, 3)))
    if world.rank == world.size - 1:
        factors.v = factors.v.toarray()
    plan.Start()
    with pytest.raises(ValueError, match="CSR v and S=2 when the plan was made"):
        plan.Wait()


@given(st.integers(0, MOST_SAMPLES), st.integers(0, MOST_NONZEROS))
def test_samples_and_non_zeros_travel_in_one_word(samples, nonzeros):
    size = joined_size(samples, nonzeros)
    assert 0 <= size < 1 << 63
    assert split_sizes(size) == (samples, nonzeros)
    np.testing.assert_array_equal(split_sizes(np.array([size])), [[samples], [nonzeros]])


def test_more_samples_and_non_zeros_than_the_header_holds():
    for samples, nonzeros in ((MOST_SAMPLES + 1, 0), (0, MOST_NONZEROS + 1)):
        with pytest.raises(ValueError, match="at most"):
            joined_size(samples, nonzeros)


@given(st.integers(0, 1 << 40))
def test_plans_have_room_for_up_to_twice_the_non_zeros(nonzeros):
    assert nonzeros <= room_for(nonzeros) <= max(1024, 2 * nonzeros)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3000)), min_size=1, max_size=5), st.integers(0, 50))
def test_messages_fit_into_what_a_plan_allocates(ranks, rows):
    samples, nonzeros = (np.array(values) for values in zip(*ranks, strict=True))
    problem = replace(
        even((rows, 100), 1, len(ranks)), counts=samples, nonzeros=nonzeros, room=room_for(int(nonzeros.sum()))
    )
    assert problem.message_bytes <= problem.most_bytes
    sizes, offsets = problem.words
    assert offsets[-1] + sizes[-1] == problem.message_bytes // 8


def received(**options):
    plan = what_if(rows=50, columns=47_000, samples=64, ranks=4, nodes=4, **options)
    return {estimate.algorithm: estimate.wire_bytes for estimate in plan.estimates}, plan


def test_the_cost_model_prices_the_non_zeros():
    few, plan = received(filled=0.002)
    assert plan.algorithm == "broadcast"
    assert "24064 non-zeros in CSR v" in plan.explain()
    more, _ = received(filled=0.02)
    assert 5 < more["broadcast"] / few["broadcast"] < 10  # u travels, too
    dense, _ = received()
    assert dense["broadcast"] > 50 * few["broadcast"]
    assert few["dense"] == dense["dense"]
    assert received(filled=1.0)[1].algorithm != "broadcast"


def test_a_rule_that_changes_every_element_costs_more():
    seconds = Counter(
        {
            receiver: what_if(rows=50, columns=47_000, samples=64, ranks=4, nodes=1, filled=0.002, receiver=receiver)
            .estimates[0]
            .total
            for receiver in ("sgd", "array", "momentum")
        }
    )
    assert [name for name, _ in seconds.most_common()] == ["momentum", "array", "sgd"]
