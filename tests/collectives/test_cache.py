"""What the caches of exchanges keep, and what they let go."""

import gc
import weakref

import numpy as np
import pytest

import sfb
from sfb.collectives import engine, plans
from sfb.collectives.cache import Receivers
from sfb.collectives.options import Options


def test_receivers_that_are_gone_are_dropped():
    receivers = Receivers(Options(), lambda block: True)
    kept, gone = np.zeros((2, 3)), np.zeros((2, 3))
    rule = sfb.optim.SGD(np.zeros((2, 3)), lr=1.0)
    keys = [id(each) for each in (kept, gone, rule)]
    for each in (kept, gone, rule):
        receivers.checked(each)
    assert all(receivers._cached.get(key) for key in keys)
    del gone, rule, each
    gc.collect()
    assert [receivers._cached.get(key) is not None for key in keys] == [True, False, False]


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", ["node", "dense"])
def test_plans_let_go_of_memory_that_other_memory_has_replaced(comm, world, algorithm):
    if comm.node.size == 1:
        pytest.skip("a rank alone on its node has no staging memory")
    blocks = []
    for columns in (30, 3000):
        g = np.empty((40, columns))
        for _ in range(3):
            comm.Allreduce(sfb.Factors(np.ones((2, 40)), np.ones((2, columns))), g, algorithm=algorithm)
        blocks.append(weakref.ref(comm._team.staging.block))
    gc.collect()
    assert [block() is None for block in blocks] == [True, False]


@pytest.mark.mpi
def test_calls_under_way_make_one_plan_for_all(comm, world, monkeypatch):
    made, plain = [], engine.choose
    monkeypatch.setattr(engine, "choose", lambda *arguments, **options: made.append(1) or plain(*arguments, **options))
    sums = [np.empty((5, 7)) for _ in range(6)]
    factors = sfb.Factors(np.ones((3, 5)), np.ones((3, 7)))
    for request in [comm.Iallreduce(factors, g, algorithm="broadcast") for g in sums]:
        request.Wait()
    assert len(made) == 1
    for g in sums:
        np.testing.assert_array_equal(g, 3 * world.size)


@pytest.mark.mpi
def test_keys_go_with_their_last_plan(comm, world, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 3)
    arrays = [np.empty((4, 3 + i)) for i in range(5)]
    for _ in range(3):
        for i, g in enumerate(arrays):
            comm.Allreduce(sfb.Factors(np.ones((1, 4)), np.ones((1, 3 + i))), g, algorithm="dense")
            np.testing.assert_array_equal(g, world.size)
    assert len(comm._engine._plans._by_key) == 3
