"""Exchanges that do not block."""

import numpy as np
import oracle
import pytest
from mpi4py import MPI

import sfb

pytestmark = pytest.mark.mpi


@pytest.fixture(params=["thread", "poll"])
def eager(request, world):
    comm = sfb.Comm(world, progress=request.param)
    yield comm
    comm.free()


def good():
    return sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))


@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense", "sharded", "auto"])
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_same_bits_as_blocking(eager, world, rng, algorithm, shared):
    shape = (130, 90)
    parts = oracle.draw(rng, [5 + r for r in range(world.size)], shape, np.float32)
    factors = sfb.Factors(*parts[world.rank])
    results = [eager.shared(shape) if shared else np.empty(shape, np.float32) for _ in range(2)]
    eager.Allreduce(factors, results[0], algorithm=algorithm)
    request = eager.Iallreduce(factors, results[1], algorithm=algorithm)
    request.Wait()
    oracle.assert_same_bits(world, results[1])
    assert (abs(results[1] - oracle.total(parts, shape)) <= oracle.bound(parts, shape, np.float32)).all()
    if algorithm != "auto":
        np.testing.assert_array_equal(results[0], results[1])
        assert request.exchange.algorithm == algorithm


def test_many_at_once_waited_for_in_any_order(eager, world, rng):
    cases = []
    for i in range(40):
        shape = (5 + i, 3 + 2 * i)
        parts = oracle.draw(rng, [(i + r) % 4 for r in range(world.size)], shape, np.float64)
        g = np.empty(shape) if i % 3 else eager.shared(shape, np.float64)
        algorithm = ["node", "broadcast", "dense", "sharded"][i % 4]
        cases.append((parts, g, eager.Iallreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)))
    order = np.random.default_rng(world.rank).permutation(len(cases))  # another one on each rank
    for i in order:
        parts, g, request = cases[i]
        request.Wait()
        assert (abs(g - oracle.total(parts, g.shape)) <= oracle.bound(parts, g.shape, np.float64)).all()


def test_wrong_calls_among_others(eager, world):
    g, h = np.empty((4, 3)), np.empty((4, 3))
    wrong = np.zeros((4, 3) if world.rank else (3, 4))
    requests = [eager.Iallreduce(good(), receiver) for receiver in (g, wrong, h)]
    if world.rank % 2:
        requests[2].Wait()
        requests[0].Wait()
    with pytest.raises(ValueError, match="rank 0:"):
        requests[1].Wait()
    if world.rank % 2 == 0:
        sfb.Request.Waitall([requests[0], requests[2]])
    np.testing.assert_array_equal(g, 2 * world.size)
    np.testing.assert_array_equal(h, g)


def test_an_optimizer_without_state_yet(eager, world):
    optimizer = sfb.optim.SGD(eager.shared((4, 3), np.float64), lr=1.0, momentum=0.5)
    requests = [eager.Iallreduce(good(), optimizer) for _ in range(3)]
    sfb.Request.Waitall(requests)
    np.testing.assert_allclose(optimizer.array, -2 * world.size * (1 + 1.5 + 1.75))


def test_polling_by_test(eager):
    g = np.empty((4, 3))
    request = eager.Iallreduce(good(), g)
    while not request.Test():
        pass
    np.testing.assert_array_equal(g, 2 * eager.size)


def test_waitall_with_requests_of_mpi(eager, world):
    received, g, h = np.zeros(1), np.empty((4, 3)), np.empty((4, 3))
    left, right = (world.rank - 1) % world.size, (world.rank + 1) % world.size
    requests = [
        eager.Iallreduce(good(), g),
        world.Irecv(received, left),
        eager.Iallreduce(good(), h),
        world.Isend(np.full(1, world.rank, float), right),
    ]
    sfb.Request.Waitall(requests)
    assert received[0] == left
    np.testing.assert_array_equal(g, 2 * world.size)
    np.testing.assert_array_equal(h, g)


def test_mpis_own_waitall(world):
    with sfb.Comm(world, progress="thread") as comm:
        g, total = np.empty((4, 3)), np.empty(1)
        requests = [comm.Iallreduce(good(), g), comm.Iallreduce(np.ones(1), total)]
        assert all(isinstance(request, MPI.Request) for request in requests)
        MPI.Request.Waitall(requests)
        np.testing.assert_array_equal(g, 2 * world.size)
        assert total[0] == world.size
    with sfb.Comm(world, progress="poll") as comm:
        request = comm.Iallreduce(good(), g)
        with pytest.raises(TypeError):  # it would wait for ever
            MPI.Request.Waitall([request])
        request.Wait()


def test_blocking_calls_between(eager, world):
    g, h, x = np.empty((4, 3)), np.empty((4, 3)), np.empty(1)
    request = eager.Iallreduce(good(), g)
    eager.Allreduce(good(), h)
    eager.Allreduce(np.ones(1), x)
    w = eager.shared((4, 3))
    assert not w.any()
    request.Wait()
    np.testing.assert_array_equal(g, 2 * world.size)
    np.testing.assert_array_equal(h, g)


def test_waited_for_twice(eager):
    request = eager.Iallreduce(good(), np.empty((4, 3)))
    request.Wait()
    for again in (request.Wait, request.Test):
        with pytest.raises(RuntimeError, match="waited for already"):
            again()


def test_wrong_arguments_are_raised_by_wait_on_every_rank(eager, world):
    g = np.zeros((4, 3) if world.rank else (3, 4))
    request = eager.Iallreduce(good(), g)
    with pytest.raises(ValueError, match="rank 0: the receiver must have the shape"):
        request.Wait()
    assert not g.any()
    eager.Allreduce(good(), g := np.zeros((4, 3)))
    np.testing.assert_array_equal(g, 2 * world.size)


def test_blocking_on_one_rank_only(eager, world):
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    g = np.empty((4, 3))
    call = eager.Allreduce if world.rank == 0 else lambda *buffers: eager.Iallreduce(*buffers).Wait()
    with pytest.raises(sfb.MismatchError, match="Iallreduce with"):
        call(good(), g)


def test_free_waits_for_what_is_under_way(world):
    comm = sfb.Comm(world)
    g = np.empty((4, 3))
    request = comm.Iallreduce(good(), g)
    comm.free()
    request.Wait()
    np.testing.assert_array_equal(g, 2 * world.size)


@pytest.mark.parametrize("option", [{"progress": "magic"}, {"max_bytes": 0}, {"stall": 0}])
def test_impossible_options(world, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        sfb.Comm(world, **option)
