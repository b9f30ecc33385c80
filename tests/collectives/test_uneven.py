"""Ranks whose samples differ, and change from call to call: one plan serves calls that are alike."""

import numpy as np
import oracle
import pytest
from nodes import comm_of_nodes
from scipy.sparse import csr_array

import sfb
from sfb.collectives import ALGORITHMS, engine
from sfb.collectives.algorithms import SPARSE_ALGORITHMS
from sfb.collectives.call import Call
from sfb.runtime.rounds import Rounds

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


@pytest.mark.parametrize("blocking", [True, False])
def test_a_small_product_travels_beside_the_header(lone_comm, world, rng, monkeypatch, blocking):
    """Calls after the first need no other messages than those by which the ranks agree."""
    if world.size == 1:
        pytest.skip("a rank alone")
    shape = (9, 7)
    optimizer = sfb.optim.SGD(np.zeros(shape), lr=1.0)
    total = np.zeros(shape)

    def reduce(samples):
        parts = oracle.draw(rng, samples, shape, np.float64)
        call = lone_comm.Allreduce if blocking else lone_comm.Iallreduce
        done = call(sfb.Factors(*parts[world.rank]), optimizer, algorithm="dense")
        if not blocking:
            done.Wait()
        np.add(total, oracle.total(parts, shape), out=total)
        np.testing.assert_allclose(optimizer.array, -total, atol=1e-12)

    counts = [8 + (rank == 0) for rank in range(world.size)]
    for _ in range(2):
        reduce(counts)  # the first finds no plan
    with monkeypatch.context() as patch:
        for collective in ("allgather_packed", "allgather_in_place", "allreduce", "gather"):
            patch.delattr(Call, collective)
        patch.delattr(Rounds, "sum")
        for turn in range(6):
            reduce(counts[turn % world.size :] + counts[: turn % world.size])
    # Other plans serve what follows: S all the same, and far more or fewer; and then again the first one.
    for samples in ([8] * world.size, counts, [2 * n for n in counts], [0] * (world.size - 1) + [1], counts, counts):
        reduce(samples)
        reduce(samples)


@pytest.mark.parametrize("algorithm", ["dense", "auto"])
def test_bits_do_not_depend_on_earlier_calls(world, rng, algorithm):
    """An exchange that ranks try first gives way where its plan is not that of the call."""
    options = {"profile": sfb.Profile(), "reproducible": True}
    g, fresh = np.empty((9, 7), np.float32), np.empty((9, 7), np.float32)
    with comm_of_nodes(world, 1, **options) as comm:
        for samples in batches(rng, world.size, 12):
            factors = sfb.Factors(*oracle.draw(rng, samples, g.shape, np.float32)[world.rank])
            comm.Allreduce(factors, g, algorithm=algorithm)
            with comm_of_nodes(world, 1, **options) as other:
                other.Allreduce(factors, fresh, algorithm=algorithm)
            np.testing.assert_array_equal(g, fresh)


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
