"""Ranks whose samples differ, and change from call to call: one plan serves calls that are alike."""

import numpy as np
import oracle
import pytest
from scipy.sparse import csr_array

import sfb
from sfb.collectives import ALGORITHMS, engine
from sfb.collectives.algorithms import SPARSE_ALGORITHMS

pytestmark = pytest.mark.mpi

SHAPE = (90, 70)


@pytest.fixture
def plans(monkeypatch):
    """The depths of the plans that calls make; a communicator measures a profile by calls of other shapes."""
    made = []

    def choose(problem, *arguments, **options):
        if problem.shape == SHAPE:
            made.append(problem.depth)
        return plain(problem, *arguments, **options)

    plain = engine.choose
    monkeypatch.setattr(engine, "choose", choose)
    return made


def batches(rng, ranks, steps):
    """Return S of each rank in each step: parts of batches of 8·ranks samples."""
    return [rng.multinomial(8 * ranks, np.full(ranks, 1 / ranks)).tolist() for _ in range(steps)]


def receiver(comm, shared, dtype=np.float32):
    return comm.shared(SHAPE, dtype) if shared else np.empty(SHAPE, dtype)


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "auto"])
def test_batches_that_ranks_divide_at_random(any_comm, world, rng, plans, algorithm, shared):
    comm, g = any_comm, receiver(any_comm, shared)
    steps = batches(rng, world.size, 12)
    for samples in steps:
        parts = oracle.draw(rng, samples, SHAPE, np.float32)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
        assert (abs(g - oracle.total(parts, SHAPE)) <= oracle.bound(parts, SHAPE, np.float32)).all(), samples
        oracle.assert_same_bits(world, g)
        comm.node.Barrier()
    assert len(plans) < 8


@pytest.mark.parametrize("algorithm", [*SPARSE_ALGORITHMS, "auto"])
def test_csr(any_comm, world, rng, plans, algorithm):
    comm, g = any_comm, np.empty(SHAPE)
    for samples in batches(rng, world.size, 12):
        parts = oracle.draw(rng, samples, SHAPE, np.float64)
        for _, v in parts:
            v[rng.random(v.shape) < 0.9] = 0
        u, v = parts[world.rank]
        comm.Allreduce(sfb.Factors(u, csr_array(v)), g, algorithm=algorithm)
        assert (abs(g - oracle.total(parts, SHAPE)) <= oracle.bound(parts, SHAPE, np.float64)).all(), samples
        oracle.assert_same_bits(world, g)
    assert len(plans) < 8


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "auto"])
def test_calls_under_way_together(any_comm, world, rng, algorithm):
    steps = batches(rng, world.size, 6)
    drawn = [oracle.draw(rng, samples, SHAPE, np.float32) for samples in steps]
    sums = [np.empty(SHAPE, np.float32) for _ in steps]
    requests = [
        any_comm.Iallreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
        for parts, g in zip(drawn, sums, strict=True)
    ]
    for request in requests:
        request.Wait()
    for parts, g in zip(drawn, sums, strict=True):
        assert (abs(g - oracle.total(parts, SHAPE)) <= oracle.bound(parts, SHAPE, np.float32)).all()
        oracle.assert_same_bits(world, g)


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_a_persistent_request_keeps_its_samples(any_comm, world, rng, shared):
    """Other calls with samples alike, of one plan with it, go on in between."""
    samples = [8 + rank % 2 for rank in range(world.size)]
    others = samples[::-1]
    g, h = receiver(any_comm, shared), receiver(any_comm, shared)
    parts = oracle.draw(rng, samples, SHAPE, np.float32)
    factors = sfb.Factors(*parts[world.rank])
    with any_comm.Allreduce_init(factors, g) as request:
        for _ in range(4):
            request.Start()
            request.Wait()
            assert (abs(g - oracle.total(parts, SHAPE)) <= oracle.bound(parts, SHAPE, np.float32)).all()
            more = oracle.draw(rng, others, SHAPE, np.float32)
            any_comm.Allreduce(sfb.Factors(*more[world.rank]), h)
            assert (abs(h - oracle.total(more, SHAPE)) <= oracle.bound(more, SHAPE, np.float32)).all()
            any_comm.node.Barrier()


def test_all_samples_at_one_rank(any_comm, world, rng):
    g = np.empty(SHAPE)
    for turn in range(2 * world.size):
        samples = [20 * (rank == turn % world.size) for rank in range(world.size)]
        parts = oracle.draw(rng, samples, SHAPE, np.float64)
        any_comm.Allreduce(sfb.Factors(*parts[world.rank]), g)
        assert (abs(g - oracle.total(parts, SHAPE)) <= oracle.bound(parts, SHAPE, np.float64)).all()


def test_what_exceeds_max_bytes_has_plans_of_its_own(world, rng, plans):
    """A plan for more samples would be one in blocks, where those of the call fit."""
    if world.size == 1:
        pytest.skip("a rank alone")
    samples = [9 + (rank == 0) for rank in range(world.size)]
    exact = sum(samples) * sum(SHAPE) * 4
    with sfb.Comm(world, max_bytes=exact) as comm:
        parts = oracle.draw(rng, samples, SHAPE, np.float32)
        w = np.zeros(SHAPE, np.float32)
        comm.Allreduce(sfb.Factors(*parts[world.rank]), sfb.optim.SGD(w, lr=1.0, max_norm=1e9), algorithm="broadcast")
        assert (abs(w + oracle.total(parts, SHAPE)) <= oracle.bound(parts, SHAPE, np.float32) + 1e-6).all()
    assert plans == [sum(samples)]
