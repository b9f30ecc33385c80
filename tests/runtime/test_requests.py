"""Requests for exchanges that do not block."""

from contextlib import suppress

import numpy as np
import oracle
import pytest
from mpi4py import MPI

import sfb

pytestmark = pytest.mark.mpi


@pytest.fixture(params=["thread", "poll"])
def progressing(request, world):
    comm = sfb.Comm(world, progress=request.param)
    yield comm
    comm.free()


def good():
    return sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))


@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense", "sharded", "auto"])
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_same_bits_as_blocking(progressing, world, rng, algorithm, shared):
    shape = (130, 90)
    parts = oracle.draw(rng, [5 + r for r in range(world.size)], shape, np.float32)
    factors = sfb.Factors(*parts[world.rank])
    results = [progressing.shared(shape) if shared else np.empty(shape, np.float32) for _ in range(2)]
    progressing.Allreduce(factors, results[0], algorithm=algorithm)
    request = progressing.Iallreduce(factors, results[1], algorithm=algorithm)
    request.Wait()
    oracle.assert_same_bits(world, results[1])
    assert (abs(results[1] - oracle.total(parts, shape)) <= oracle.bound(parts, shape, np.float32)).all()
    if algorithm != "auto":
        np.testing.assert_array_equal(results[0], results[1])
        assert request.exchange.algorithm == algorithm


def test_many_at_once_waited_for_in_any_order(progressing, world, rng):
    cases = []
    for i in range(40):
        shape = (5 + i, 3 + 2 * i)
        parts = oracle.draw(rng, [(i + r) % 4 for r in range(world.size)], shape, np.float64)
        g = np.empty(shape) if i % 3 else progressing.shared(shape, np.float64)
        algorithm = ["node", "broadcast", "dense", "sharded"][i % 4]
        cases.append((parts, g, progressing.Iallreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)))
    order = np.random.default_rng(world.rank).permutation(len(cases))  # different on each rank
    for i in order:
        parts, g, request = cases[i]
        request.Wait()
        assert (abs(g - oracle.total(parts, g.shape)) <= oracle.bound(parts, g.shape, np.float64)).all()


def test_wrong_calls_among_others(progressing, world):
    g, h = np.empty((4, 3)), np.empty((4, 3))
    wrong = np.zeros((4, 3) if world.rank else (3, 4))
    requests = [progressing.Iallreduce(good(), receiver) for receiver in (g, wrong, h)]
    if world.rank % 2:
        requests[2].Wait()
        requests[0].Wait()
    with pytest.raises(ValueError, match="rank 0:"):
        requests[1].Wait()
    if world.rank % 2 == 0:
        sfb.Request.Waitall([requests[0], requests[2]])
    np.testing.assert_array_equal(g, 2 * world.size)
    np.testing.assert_array_equal(h, g)


def test_an_optimizer_without_state_yet(progressing, world):
    optimizer = sfb.optim.SGD(progressing.shared((4, 3), np.float64), lr=1.0, momentum=0.5)
    requests = [progressing.Iallreduce(good(), optimizer) for _ in range(3)]
    sfb.Request.Waitall(requests)
    np.testing.assert_allclose(optimizer.array, -2 * world.size * (1 + 1.5 + 1.75))


def test_polling_by_test(progressing):
    g = np.empty((4, 3))
    request = progressing.Iallreduce(good(), g)
    while not request.Test():
        pass
    np.testing.assert_array_equal(g, 2 * progressing.size)


def test_waitall_with_requests_of_mpi(progressing, world):
    received, g, h = np.zeros(1), np.empty((4, 3)), np.empty((4, 3))
    left, right = (world.rank - 1) % world.size, (world.rank + 1) % world.size
    requests = [
        progressing.Iallreduce(good(), g),
        world.Irecv(received, left),
        progressing.Iallreduce(good(), h),
        world.Isend(np.full(1, world.rank, float), right),
    ]
    sfb.Request.Waitall(requests)
    assert received[0] == left
    np.testing.assert_array_equal(g, 2 * world.size)
    np.testing.assert_array_equal(h, g)


def test_mpis_own_waitall(world):
    with sfb.Comm(world, progress="thread") as comm:
        g, one, total = np.empty((4, 3)), np.ones(1), np.empty(1)
        requests = [comm.Iallreduce(good(), g), comm.Iallreduce(one, total)]
        assert all(isinstance(request, MPI.Request) for request in requests)
        MPI.Request.Waitall(requests)
        np.testing.assert_array_equal(g, 2 * world.size)
        assert total[0] == world.size
    with sfb.Comm(world, progress="poll") as comm:
        request = comm.Iallreduce(good(), g)
        with pytest.raises(TypeError):  # else it would wait for ever
            MPI.Request.Waitall([request])
        request.Wait()


def test_blocking_calls_between(progressing, world):
    g, h, x = np.empty((4, 3)), np.empty((4, 3)), np.empty(1)
    request = progressing.Iallreduce(good(), g)
    progressing.Allreduce(good(), h)
    progressing.Allreduce(np.ones(1), x)
    w = progressing.shared((4, 3))
    assert not w.any()
    request.Wait()
    np.testing.assert_array_equal(g, 2 * world.size)
    np.testing.assert_array_equal(h, g)


@pytest.mark.parametrize("begin", ["Start", "Iallreduce"])
@pytest.mark.parametrize("progress", ["thread", "poll"])
@pytest.mark.parametrize("fixture", ["comm", "lone_comm"])
def test_calls_of_plain_arrays_advance_exchanges(request, world, fixture, progress, begin):
    """One rank waits in such a call for the others, which wait for its part of an exchange."""
    x, y = np.ones(1000), np.empty(1000)
    with sfb.Comm(world, node=request.getfixturevalue(fixture).node, progress=progress) as comm:
        g = comm.shared((4, 3), np.float64)
        plan = comm.Allreduce_init(good(), g)
        for count in (1, 1000):
            if world.rank:
                world.Barrier()
            exchange = comm.Iallreduce(good(), g) if begin == "Iallreduce" else plan.Start() or plan
            if world.rank == 0:
                world.Barrier()
                comm.Allreduce(x[:count], y[:count])
            exchange.Wait()
            if world.rank:
                comm.Allreduce(x[:count], y[:count])
            np.testing.assert_array_equal(g, 2 * world.size)
            assert y[0] == world.size
        del g, plan, exchange


@pytest.mark.parametrize(
    ("fixture", "algorithm"),
    [("lone_comm", "broadcast"), ("lone_comm", "dense"), ("comm", "node"), ("comm", "sharded")],
)
def test_a_receiver_takes_sums_in_the_order_of_calls(request, world, fixture, algorithm):
    """Rank 0 makes its second call when the messages of the others for it have come, but not those of the first."""
    w = np.zeros((4, 3))
    optimizer = sfb.optim.SGD(w, lr=1.0, momentum=0.5)
    factors = [sfb.Factors(np.full((1, 4), value), np.ones((1, 3))) for value in (1.0, 2.0)]
    with sfb.Comm(world, node=request.getfixturevalue(fixture).node, progress="poll") as comm:
        for _ in range(2):
            comm.Allreduce(factors[0], optimizer, algorithm=algorithm)
        w[:] = optimizer.velocity[:] = 0
        if world.rank:
            world.Barrier()
        requests = [comm.Iallreduce(factors[0], optimizer, algorithm=algorithm)]
        if world.rank == 0:
            world.Barrier()
            world.Barrier()
        requests.append(comm.Iallreduce(factors[1], optimizer, algorithm=algorithm))
        if world.rank:
            world.Barrier()
        for waiting in reversed(requests):
            waiting.Wait()
    np.testing.assert_array_equal(w, -world.size * (1 + 2.5))


@pytest.mark.parametrize(
    ("fixture", "algorithm"),
    [("lone_comm", "broadcast"), ("lone_comm", "sharded"), ("comm", "node"), ("comm", "dense")],
)
def test_wait_goes_on_after_an_interrupt(request, world, monkeypatch, fixture, algorithm):
    if world.size == 1:
        pytest.skip("needs a rank to wait for")

    def interrupt():
        raise KeyboardInterrupt

    with sfb.Comm(world, node=request.getfixturevalue(fixture).node, progress="poll") as comm:
        g = np.empty((4, 3))
        for _ in range(2):
            comm.Allreduce(good(), g, algorithm=algorithm)
        g[:] = 0
        if world.rank:
            world.Barrier()
        exchange = comm.Iallreduce(good(), g, algorithm=algorithm)
        if world.rank == 0:
            with monkeypatch.context() as patch:
                patch.setattr(comm._team.board, "watch", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    exchange.Wait()
            world.Barrier()
        exchange.Wait()
        np.testing.assert_array_equal(g, 2 * world.size)
        comm.Allreduce(good(), g, algorithm=algorithm)
        np.testing.assert_array_equal(g, 2 * world.size)


def test_waited_for_twice(progressing):
    """Requests of MPI are null then, and so not waited for."""
    request = progressing.Iallreduce(good(), np.empty((4, 3)))
    request.Wait()
    assert not request
    assert request.Wait()
    assert request.Test()
    assert request.exchange is not None


def test_wrong_arguments_are_raised_by_wait_on_every_rank(progressing, world):
    g = np.zeros((4, 3) if world.rank else (3, 4))
    request = progressing.Iallreduce(good(), g)
    with pytest.raises(ValueError, match="rank 0: the receiver must have the shape"):
        request.Wait()
    assert not g.any()
    progressing.Allreduce(good(), g := np.zeros((4, 3)))
    np.testing.assert_array_equal(g, 2 * world.size)


def test_blocking_on_one_rank_only(progressing, world):
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    g = np.empty((4, 3))
    call = progressing.Allreduce if world.rank == 0 else lambda *buffers: progressing.Iallreduce(*buffers).Wait()
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


def again(call, done):
    """Call until the result says that all is done."""
    while not done(call()):
        pass


COMPLETIONS = {
    "Waitall": lambda requests: MPI.Request.Waitall(requests),
    "waitall": lambda requests: MPI.Request.waitall(requests),
    "Waitany": lambda requests: [MPI.Request.Waitany(requests) for _ in requests],
    "Waitsome": lambda requests: again(lambda: MPI.Request.Waitsome(requests), lambda some: some is None),
    "Testall": lambda requests: again(lambda: MPI.Request.Testall(requests), lambda flag: flag),
    "Testany": lambda requests: again(
        lambda: MPI.Request.Testany(requests), lambda some: some == (MPI.UNDEFINED, True)
    ),
    "Testsome": lambda requests: again(lambda: MPI.Request.Testsome(requests), lambda some: some is None),
}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_functions_of_mpi4py_raise_the_exception_of_an_exchange(comm, world, name):
    if not comm._progress.threaded:
        pytest.skip("needs MPI_THREAD_MULTIPLE")
    factors = sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))
    results = [np.zeros((4, 3)) for _ in range(3)]
    wrong = np.zeros((3, 4)) if world.rank == world.size - 1 else np.zeros((4, 3))
    requests = [comm.Iallreduce(factors, to) for to in (results[0], wrong, results[1], wrong, results[2])]
    with pytest.raises(ValueError, match=f"rank {world.size - 1}: the receiver must have the shape"):
        COMPLETIONS[name](list(requests))
    with pytest.raises(ValueError, match="the receiver must have the shape"):
        requests[1].Wait()
    for request in (requests[0], *requests[2:]):
        with suppress(ValueError):
            request.Wait()
    assert all((to == 2 * world.size).all() for to in results)
    comm.Iallreduce(factors, results[0]).Wait()
