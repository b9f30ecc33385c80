"""Every algorithm, receiver, dtype and shape gives the sum of the oracle, with the same bits on all ranks."""

import numpy as np
import oracle
import pytest
from nodes import split_hosts

import sfb
from sfb.collectives import ALGORITHMS

pytestmark = pytest.mark.mpi

RULE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
RULES = [
    (sfb.optim.SGD, oracle.sgd, RULE),
    (sfb.optim.Adam, oracle.adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1}),
    (sfb.optim.Adagrad, oracle.adagrad, {"lr": 0.01, "eps": 0.1, "weight_decay": 0.1}),
    (sfb.optim.Proximal, oracle.proximal, {"lr": 0.1, "l1": 0.3, "l2": 0.2}),
    (sfb.optim.Proximal, oracle.proximal, {"lr": 0.1, "radius": 2.0}),
]


def array(comm, shape, dtype, shared, fill):
    """Return a filled array, shared by the ranks of a node or not."""
    result = comm.shared(shape, dtype) if shared else np.empty(shape, dtype)
    if not shared or comm.node.rank == 0:
        result[...] = fill
    comm.Barrier()
    return result


def case(rng, ranks, trial):
    shape = tuple(int(n) for n in rng.integers(1, (80, 400, 1000)[trial % 3], 2))
    samples = [int(s) for s in rng.integers(0, (2, 4, 40)[trial // 3 % 3], ranks)]
    if trial % 4 == 0:
        samples = [max(samples)] * ranks
    return shape, samples


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("trial", range(9))
def test_sum_into_an_array(any_comm, world, rng, trial, dtype, shared):
    comm = any_comm
    shape, samples = case(rng, world.size, trial)
    parts = oracle.draw(rng, samples, shape, dtype)
    expected, bound = oracle.total(parts, shape), oracle.bound(parts, shape, dtype)
    bits = {}
    for algorithm in [*ALGORITHMS, "auto"]:
        g = array(comm, shape, dtype, shared, np.nan)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
        assert (abs(g - expected) <= bound).all(), (algorithm, shape, samples)
        oracle.assert_same_bits(world, g)
        bits[algorithm] = g.tobytes()
    assert bits["broadcast"] == bits["node"]


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("trial", range(6))
def test_sum_into_an_optimizer(any_comm, world, rng, trial, dtype, shared):
    comm = any_comm
    shape, samples = case(rng, world.size, trial)
    start = rng.standard_normal(shape).astype(dtype)
    steps = [oracle.draw(rng, samples, shape, dtype) for _ in range(3)]
    optimizer, textbook, rule = RULES[trial % len(RULES)]
    expected = textbook(start, [oracle.total(parts, shape) for parts in steps], **rule)
    slack = sum(oracle.bound(parts, shape, dtype) for parts in steps) + 20 * np.finfo(dtype).eps * abs(expected)
    bits = {}
    for algorithm in [*ALGORITHMS, "auto"]:
        w = array(comm, shape, dtype, shared, start)
        receiver = optimizer(w, **rule)
        for parts in steps:
            comm.Allreduce(sfb.Factors(*parts[world.rank]), receiver, algorithm=algorithm)
        assert (abs(w - expected) <= slack + 1e-6 * (dtype == np.float32)).all(), (algorithm, shape, samples)
        oracle.assert_same_bits(world, w)
        bits[algorithm] = w.tobytes()
    assert bits["broadcast"] == bits["node"]


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("max_norm", [1.0, 1e6])
def test_clipping_by_the_norm_of_the_sum(any_comm, world, rng, max_norm, shared):
    comm, shape = any_comm, (90, 70)
    start = rng.standard_normal(shape)
    parts = oracle.draw(rng, [3] * world.size, shape, np.float64)
    total = oracle.total(parts, shape)
    expected = start - 0.1 * total * min(1, max_norm / np.linalg.norm(total))
    for algorithm in ("broadcast", "node", "auto"):
        w = array(comm, shape, np.float64, shared, start)
        receiver = sfb.optim.SGD(w, lr=0.1, max_norm=max_norm)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), receiver, algorithm=algorithm)
        np.testing.assert_allclose(w, expected, rtol=1e-6)
        oracle.assert_same_bits(world, w)
    with pytest.raises(ValueError, match="max_norm needs the factors"):
        comm.Allreduce(sfb.Factors(*parts[world.rank]), receiver, algorithm="dense")


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_clipping_what_overflows_when_squared_or_is_not_finite(any_comm, world, shared):
    comm, last = any_comm, world.rank == world.size - 1
    for algorithm in ("broadcast", "node", "auto"):
        for value in (1e20, np.nan, np.inf):
            u, v = np.eye(2, 8, dtype="f4"), np.full((2, 8), 1e20, "f4")
            v[0, 0] = value if last else 1e20
            w = array(comm, (8, 8), "f4", shared, 0)
            comm.Allreduce(sfb.Factors(u, v), sfb.optim.SGD(w, lr=1.0, max_norm=1.0), algorithm=algorithm)
            if np.isfinite(value):
                np.testing.assert_allclose(w, -0.25 * np.eye(8, 2) @ np.ones((2, 8)), rtol=1e-5)
            else:
                assert np.isnan(w).all()


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "auto"])
def test_same_bits_twice(world, rng, algorithm):
    comm = sfb.Comm(world, reproducible=True)
    parts = oracle.draw(rng, [7] * world.size, (130, 90), np.float32)
    results = []
    for _ in range(2):
        g = np.empty((130, 90), np.float32)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
        results.append(g.tobytes())
    comm.free()
    assert results[0] == results[1]


def test_bits_do_not_depend_on_ranks_per_node(world, rng):
    parts = oracle.draw(rng, [5] * world.size, (700, 60), np.float32)
    bits = set()
    for per_node in range(1, world.size + 1):
        group = split_hosts(world, lambda slot, per_node=per_node: slot // per_node)
        with sfb.Comm(world, node=group) as comm:
            for algorithm in ("node", "broadcast"):
                g = comm.shared((700, 60))
                comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
                bits.add(g.tobytes())
        group.Free()
    assert len(bits) == 1


def test_ranks_that_lie_crosswise_on_nodes(world, rng):
    """The order of ranks decides the order of the sum, not the order of nodes."""
    parts = oracle.draw(rng, [r % 3 for r in range(world.size)], (60, 50), np.float64)
    group = split_hosts(world, lambda slot: slot % 2)
    bits = set()
    with sfb.Comm(world, node=group) as comm:
        for algorithm in ("node", "broadcast"):
            g = np.empty((60, 50))
            comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
            bits.add(g.tobytes())
    group.Free()
    assert len(bits) == 1
    assert (abs(g - oracle.total(parts, (60, 50))) <= oracle.bound(parts, (60, 50), np.float64)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("algorithm", ["broadcast", "dense"])
@pytest.mark.parametrize("shape", [(10, 90), (1, 1), (0, 5)], ids=str)
def test_eager_exchanges(lone_comm, world, rng, algorithm, shape, dtype):
    """Blocking, nonblocking and persistent calls give the same bits, whether their exchanges are eager or not."""
    comm = lone_comm
    big = 1 + (1 << 20) // (sum(shape) * np.dtype(dtype).itemsize)  # beyond the eager limit, on one rank
    for samples in ([3] * world.size, range(world.size), [0] * world.size, [1] * (world.size - 1) + [big]):
        parts = oracle.draw(rng, list(samples), shape, dtype)
        factors, g = sfb.Factors(*parts[world.rank]), np.empty(shape, dtype)
        bits = set()
        for _ in range(3):
            comm.Allreduce(factors, g, algorithm=algorithm)
            bits.add(g.tobytes())
        comm.Iallreduce(factors, g, algorithm=algorithm).Wait()
        bits.add(g.tobytes())
        persistent = comm.Allreduce_init(factors, g, algorithm=algorithm)
        persistent.Start()
        persistent.Wait()
        bits.add(g.tobytes())
        assert len(bits) == 1
        assert (abs(g - oracle.total(parts, shape)) <= oracle.bound(parts, shape, dtype)).all()
        oracle.assert_same_bits(world, g)


def test_samples_may_change_from_call_to_call(comm, world, rng):
    g = np.empty((40, 30))
    for samples in ([3] * world.size, [0] * world.size, list(range(world.size)), [50] * world.size, [1] * world.size):
        parts = oracle.draw(rng, samples, g.shape, np.float64)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), g)
        assert (abs(g - oracle.total(parts, g.shape)) <= oracle.bound(parts, g.shape, np.float64)).all()


def test_two_optimizers_of_one_shape_have_their_own_state(comm, world):
    factors = sfb.Factors(np.ones((1, 4)), np.ones((1, 3)))
    weights = [comm.shared((4, 3), np.float64) for _ in range(2)]
    optimizers = [sfb.optim.SGD(w, lr=1.0, momentum=0.5) for w in weights]
    for optimizer in optimizers * 2:
        comm.Allreduce(factors, optimizer)
    for w in weights:
        np.testing.assert_allclose(w, -world.size * 2.5)


def test_a_part_of_a_shared_array_receives(comm, world):
    whole = comm.shared((8, 3), np.float64)
    comm.Allreduce(sfb.Factors(np.ones((1, 4)), np.ones((1, 3))), whole[4:])
    comm.Barrier()
    np.testing.assert_array_equal(whole[:4], 0)
    np.testing.assert_array_equal(whole[4:], world.size)


def test_last_exchange_describes_the_last_call(comm, world):
    factors = sfb.Factors(np.ones((2, 4), np.float32), np.ones((2, 3), np.float32))
    assert comm.last_exchange is None
    for algorithm in ALGORITHMS:
        comm.Allreduce(factors, np.empty((4, 3), np.float32), algorithm=algorithm)
        last = comm.last_exchange
        assert last.algorithm == algorithm
        assert last.exchange_seconds >= 0
        assert last.rebuild_seconds > 0
    comm.Allreduce(factors, np.empty((4, 3), np.float32), algorithm="broadcast")
    assert comm.last_exchange.wire_bytes == (world.size - 1) * factors.nbytes


def test_more_plans_than_the_cache_holds(comm, world, monkeypatch):
    from sfb.collectives import plans as module

    monkeypatch.setattr(module, "MOST", 3)
    arrays = [np.empty((4, 3 + i)) for i in range(6)]
    # A new array is in the cache of no rank; which ranks pass one changes.
    for call in range(4):
        for i, g in enumerate(arrays):
            target = g if (call + i + world.rank) % 2 else np.empty_like(g)
            comm.Allreduce(sfb.Factors(np.ones((1, 4)), np.ones((1, 3 + i))), target, algorithm="node")
            np.testing.assert_array_equal(target, world.size)
