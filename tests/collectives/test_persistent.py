import gc
import tracemalloc

import numpy as np
import pytest
from mpi4py import MPI

import sfb
from sfb.collectives.persistent import PendingCall
from sfb.kernels import status
from sfb.runtime.steps import run

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense", "sharded", "auto"])
def test_every_start_takes_the_values_at_that_time(comm, world, algorithm):
    u, v, g = np.ones((2, 40)), np.ones((2, 30)), np.empty((40, 30))
    with comm.Allreduce_init(sfb.Factors(u, v), g, algorithm=algorithm) as plan:
        for value in (1.0, 2.0, 3.0):
            u[:] = value
            plan.Start()
            plan.Wait()
            np.testing.assert_array_equal(g, 2 * value * world.size)
        assert "taken" in plan.explain()
        assert plan.exchange.algorithm == plan.plan.algorithm


def test_an_optimizer_whose_rate_changes(comm, world):
    optimizer = sfb.optim.SGD(comm.shared((4, 3), np.float64), lr=1.0)
    plan = comm.Allreduce_init(sfb.Factors(np.ones((1, 4)), np.ones((1, 3))), optimizer)
    for optimizer.lr in (1.0, 0.5):
        plan.Start()
        plan.Wait()
    np.testing.assert_array_equal(optimizer.array, -1.5 * world.size)
    plan.Free()


def test_misuse(comm):
    plan = comm.Allreduce_init(sfb.Factors(np.ones((1, 4)), np.ones((1, 3))), np.empty((4, 3)))
    assert plan.Wait()  # not active, like a persistent request of MPI
    assert plan.exchange is None
    plan.Start()
    for call in (plan.Start, plan.Free):
        with pytest.raises(RuntimeError, match="is active"):
            call()
    plan.Wait()
    plan.Free()
    plan.Free()
    assert not plan
    with pytest.raises(RuntimeError, match="freed"):
        plan.Start()


def test_a_plan_whose_communicator_is_freed(world):
    comm = sfb.Comm(world)
    plan = comm.Allreduce_init(sfb.Factors(np.ones((1, 4)), np.ones((1, 3))), np.empty((4, 3)))
    comm.free()
    with pytest.raises(RuntimeError, match="freed"):
        plan.Start()


@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense"])
@pytest.mark.parametrize("fixture", ["comm", "lone_comm"])
def test_plans_of_one_shape_under_way_at_once(request, world, rng, fixture, algorithm):
    """Each has memory of its own, and their order on all ranks is that of Start."""
    comm = request.getfixturevalue(fixture)
    shape, plans = (40, 30), []
    for i in range(4):
        u, v = np.full((2, 40), world.rank + 1.0), np.full((2, 30), i + 1.0)
        g = np.empty(shape)
        plans.append((comm.Allreduce_init(sfb.Factors(u, v), g, algorithm=algorithm), g))
    expected = 2 * sum(range(1, world.size + 1))
    for _ in range(3):
        for plan, g in plans:
            g[:] = 0
            plan.Start()
        for i in (rng.permutation(4) + world.rank) % 4:
            plan, g = plans[i]
            plan.Wait()
            np.testing.assert_array_equal(g, expected * (i + 1))
    for plan, _ in plans:
        plan.Free()


def test_ranks_that_start_different_plans(comm, world):
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    plans = [comm.Allreduce_init(sfb.Factors(np.ones((1, 4)), np.ones((1, 3))), np.empty((4, 3))) for _ in range(2)]
    plan = plans[world.rank == 0]
    plan.Start()
    with pytest.raises(sfb.MismatchError, match="ranks disagree"):
        plan.Wait()


def test_factors_that_are_not_those_of_the_plan(comm, world):
    factors = sfb.Factors(np.ones((1, 4)), np.ones((1, 3)))
    plan = comm.Allreduce_init(factors, np.empty((4, 3)))
    if world.rank == world.size - 1:
        factors.u, factors.v = np.ones((2, 4)), np.ones((2, 3))
    plan.Start()
    with pytest.raises(ValueError, match="dense v and S=1 when the plan was made"):
        plan.Wait()


@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense"])
def test_start_and_wait_allocate_no_buffers(world, algorithm):
    with sfb.Comm(world, progress="poll") as comm:
        u, v, g = np.ones((50, 400)), np.ones((50, 300)), np.empty((400, 300))
        plan = comm.Allreduce_init(sfb.Factors(u, v), g, algorithm=algorithm)
        for _ in range(3):
            plan.Start()
            plan.Wait()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(5):
            plan.Start()
            plan.Wait()
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()  # requests and generators refer to each other
        now = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        # Views, requests and generators come and go; the smallest array has 120 kB.
        assert peak - before < 40_000
        assert now - before < 20_000


@pytest.mark.parametrize("fixture", ["comm", "lone_comm"])
@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense", "sharded"])
def test_an_exchange_that_is_tested_until_it_ends(request, world, fixture, algorithm):
    """Fused, eager and stepwise exchanges all go on in `test`."""
    comm = request.getfixturevalue(fixture)
    factors, g = sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.empty((4, 3))
    engine = comm._engine
    engine.allreduce("Allreduce", factors, g, MPI.SUM, algorithm)
    g[:] = 0
    pending = engine.begin(PendingCall("Iallreduce", factors, g, algorithm, blocking=False), MPI.SUM)
    exchange = pending.exchange
    while not exchange.test():
        pass
    assert exchange.wait() == status.DONE
    assert run(engine.complete(pending)).algorithm == algorithm
    np.testing.assert_array_equal(g, 2 * world.size)
