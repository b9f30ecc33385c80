"""Pipelined exchanges: bands of rows, each rebuilt while the next travel."""

import numpy as np
import oracle
import pytest

import sfb
from sfb.collectives import Problem, fill_nodes, pipelined

pytestmark = pytest.mark.mpi


@pytest.fixture
def small_bands(monkeypatch):
    """Let small matrices travel in several bands, each rebuilt in several slices."""
    for name, value in {"_WORTH": 1, "_ROWS": 3, "_SLICE": 1}.items():
        monkeypatch.setattr(pipelined, name, value)


@pytest.mark.parametrize("wire", [None, "bfloat16"])
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("shape", [(50, 7), (3, 9), (9, 70)])
def test_bits_are_those_of_broadcast(lone_comm, world, rng, small_bands, shape, shared, wire):
    samples = [5 + rank if rank != 1 else 0 for rank in range(world.size)]
    parts = oracle.draw(rng, samples, shape, np.float32)
    start = rng.standard_normal(shape).astype(np.float32)
    factors = sfb.Factors(*parts[world.rank])
    results = set()
    with sfb.Comm(world, node=lone_comm.node, wire=wire) as comm:
        for algorithm in ("broadcast", "pipelined"):
            w = comm.shared(shape) if shared else np.empty(shape, np.float32)
            w[...] = start
            optimizer = sfb.optim.SGD(w, lr=0.1, momentum=0.9)
            for _ in range(2):
                comm.Allreduce(factors, optimizer, algorithm=algorithm)
            comm.Iallreduce(factors, optimizer, algorithm=algorithm).Wait()
            plan = comm.Allreduce_init(factors, optimizer, algorithm=algorithm)
            for _ in range(2):
                plan.Start()
                plan.Wait()
            plan.Free()
            assert comm.last_exchange.algorithm == algorithm
            oracle.assert_same_bits(world, w)
            results.add(w.tobytes())
            del optimizer, plan, w
    assert len(results) == 1


@pytest.mark.parametrize("algorithm", ["broadcast", "pipelined"])
def test_on_any_nodes(any_comm, world, rng, small_bands, algorithm):
    shape = (40, 11)
    parts = oracle.draw(rng, [4] * world.size, shape, np.float64)
    for target in (np.empty(shape), any_comm.shared(shape, np.float64)):
        any_comm.Allreduce(sfb.Factors(*parts[world.rank]), target, algorithm=algorithm)
        assert (abs(target - oracle.total(parts, shape)) <= oracle.bound(parts, shape, np.float64)).all()
        oracle.assert_same_bits(world, target)
        del target


def test_several_at_once(lone_comm, world, small_bands):
    ones = [sfb.Factors(np.ones((2, 30)), np.full((2, 4), 1.0 + i)) for i in range(4)]
    targets = [np.empty((30, 4)) for _ in ones]
    requests = [
        lone_comm.Iallreduce(factors, target, algorithm="pipelined")
        for factors, target in zip(ones, targets, strict=True)
    ]
    for request in reversed(requests):
        request.Wait()
    for i, target in enumerate(targets):
        np.testing.assert_array_equal(target, 2 * world.size * (1 + i))


def problem(shape, samples, ranks, **options):
    counts = np.full(ranks, samples, np.int64)
    node_of = fill_nodes(ranks, options.pop("nodes", ranks))
    return Problem(shape=shape, dtype=np.dtype("f4"), counts=counts, node_of=node_of, passes=2, **options)


def test_where_it_suits():
    assert pipelined.suits(problem((4096, 784), 128, 4))
    assert not pipelined.suits(problem((10, 784), 128, 4))  # too small
    assert not pipelined.suits(problem((1000, 21504), 128, 4))  # v is most of the exchange
    assert not pipelined.suits(problem((4096, 784), 128, 4, nodes=2))  # `node` suits
    assert not pipelined.suits(problem((4096, 784), 128, 4, whole=True))  # the norm needs all factors
    assert 0.7 < pipelined.hides(problem((4096, 784), 128, 4)) < 0.84
