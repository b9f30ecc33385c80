"""Updates by factors with CSR v: applied exactly once, in messages of their non-zeros."""

import itertools

import numpy as np
import oracle
import pytest
from scipy.sparse import csr_array, random_array

import sfb
from sfb.store.entry import DENSE, UPDATE, Entry, csr_samples, csr_size, pack, unpack
from sfb.store.replica import Table
from sfb.store.store import _payload

MODES = [sfb.BSP(), sfb.SSP(1), sfb.ASP()]


def draw(rng, samples, shape, dtype, filled=0.1):
    v = random_array((samples, shape[1]), density=filled, format="csr", dtype=dtype, rng=rng)
    v.data[:] = rng.standard_normal(v.nnz)
    v.sort_indices()
    return rng.standard_normal((samples, shape[0])).astype(dtype), v


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}], ids=str)
def test_bulk_synchronous_clocks_are_the_steps_of_allreduce(world, rng, dtype, rule):
    shape, sgd = (7, 110), sfb.optim.SGD(**rule)
    start = rng.standard_normal(shape).astype(dtype)
    with sfb.Store(world, {"W": start}, sgd) as store, sfb.Comm(world) as comm:
        reference = sgd.bind(start.copy())
        for clock in range(4):
            drawn = [[draw(rng, int(s), shape, dtype) for s in rng.integers(0, 4, 2)] for _ in range(world.size)]
            own = [sfb.Factors(u, v) for u, v in drawn[world.rank]]
            if clock < 3:
                for factors in own:
                    store.push("W", factors)
                comm.Allreduce(own[0] + own[1], reference, algorithm="broadcast")
            store.clock()
            np.testing.assert_array_equal(store["W"], reference.array)
            oracle.assert_same_bits(world, store["W"])


@pytest.mark.mpi
@pytest.mark.parametrize("consistency", MODES, ids=repr)
@pytest.mark.parametrize("options", [{}, {"bandwidth": "10MB/s", "priority": "absolute"}], ids=str)
def test_every_update_reaches_every_rank_once(world, rng, consistency, options):
    """Dense and CSR updates of one table, and arrays, mixed on all ranks."""
    shape = (5, 60)
    drawn = [[draw(rng, 3, shape, np.float64) for _ in range(6)] for _ in range(world.size)]
    store = sfb.Store(world, {"W": np.zeros(shape)}, sfb.optim.SGD(lr=1.0), consistency=consistency, **options)
    with store:
        for number, (u, v) in enumerate(drawn[world.rank]):
            form = (number + world.rank) % 3
            full = v.toarray()
            store.push("W", (sfb.Factors(u, v), sfb.Factors(u, full), u.T @ full)[form])
            store.clock()
            assert store["W"].shape == shape
    total = sum(u.T @ v.toarray() for u, v in itertools.chain(*drawn))
    np.testing.assert_allclose(store["W"], -total, rtol=1e-10, atol=1e-10)
    if consistency == sfb.BSP():
        oracle.assert_same_bits(world, store["W"])


@pytest.mark.mpi
def test_bytes_follow_the_non_zeros(world):
    if world.size == 1:
        pytest.skip("needs ranks that send")
    sent = []
    for filled in (10, 1000):
        with sfb.Store(world, {"W": np.zeros((4, 10_000))}, sfb.optim.SGD(lr=1.0), topology="complete") as store:
            v = csr_array((np.ones(filled), np.arange(filled), [0, filled]), (1, 10_000))
            store.push("W", sfb.Factors(np.ones((1, 4)), v))
            store.clock()
            assert store["W"][0, :filled].tolist() == [-world.size] * filled
        sent.append(store.stats().sent_bytes)
    links = world.size - 1
    assert sent[1] - sent[0] == 990 * 12 * links
    assert sent[0] < 700 * links


@pytest.mark.mpi
def test_averages_of_replicas(world):
    v = csr_array(np.eye(1, 50))
    with sfb.AveragingStore(world, {"W": np.zeros((3, 50))}, sfb.optim.SGD(lr=1.0)) as store:
        store.push("W", sfb.Factors(np.full((1, 3), world.rank + 1.0), v))
        store.clock()
    np.testing.assert_allclose(store["W"][:, 0], -(world.size + 1) / 2)
    assert not store["W"][:, 1:].any()


@pytest.mark.mpi
def test_wrong_updates_are_errors(world):
    with sfb.Store(world, {"W": np.zeros((3, 5))}, sfb.optim.SGD(lr=1.0)) as store:
        wrong = sfb.Factors(np.ones((1, 3)), csr_array(np.eye(1, 5)))
        wrong.v.indices[:] = 5
        with pytest.raises(ValueError, match="indices must lie in 0 to 4"):
            store.push("W", wrong)
        with pytest.raises(ValueError, match="an update of 'W' must be"):
            store.push("W", sfb.Factors(np.ones((1, 3)), csr_array(np.eye(1, 6))))
        assert not store["W"].any()


def test_sizes_of_entries():
    for samples in (0, 1, 1000):
        assert csr_size(samples) < DENSE
        assert csr_samples(csr_size(samples)) == samples
    assert csr_samples(DENSE) < 0
    assert csr_samples(7) < 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_takes_entries_of_a_message(rng, dtype):
    """Also entries without samples or non-zeros, in one step."""
    shape = (5, 40)
    drawn = [draw(rng, samples, shape, dtype, filled) for samples, filled in ((3, 0.3), (0, 0.3), (2, 0.0), (1, 0.2))]
    entries = []
    for number, (u, v) in enumerate(drawn):
        size, payload = _payload(u, v)
        entries.append(Entry(UPDATE, 0, 0, number=number, size=size, payload=payload))
    table = Table("W", np.zeros(shape, dtype), sfb.optim.SGD(lr=1.0))
    table.take(list(unpack(pack(entries, 0), 0, 0, ranks=4, hops=1)), 1)
    total = oracle.total([(u, v.toarray()) for u, v in drawn], shape)
    np.testing.assert_allclose(table.matrix, -total, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)
