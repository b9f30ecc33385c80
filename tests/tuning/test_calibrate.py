"""What a measurement holds, and that all ranks choose alike by it."""

import numpy as np
import pytest

import sfb
from sfb.collectives import ALGORITHMS
from sfb.tuning.profile import EXCHANGES, Place, Profile

pytestmark = pytest.mark.mpi


def test_a_profile_tells_where_and_what_was_measured(any_comm, world):
    profile = any_comm.tune(0.1)
    nodes = world.allgather(any_comm.node.allgather(world.rank))
    sizes = [len(ranks) for ranks in {tuple(ranks) for ranks in nodes}]
    place = profile.place
    assert place == Place(world.size, max(sizes), len(sizes), place.sharing)
    assert sorted(profile.identity["ranks_per_node"]) == sorted(sizes)
    assert set(profile.overheads) == set(ALGORITHMS)
    expected = {"copy", "rebuild/small", "rebuild/large"}
    if world.size > 1:
        expected.add("allgather")
    if max(sizes) > 1:
        expected.add("sync")
    if len(sizes) > 1:
        expected |= {"allreduce", "alltoall"}
        if max(sizes) > 1:
            expected.add("across")
    assert set(profile.tables) == expected
    collectives = [profile.tables[kind] for kind in EXCHANGES if kind in profile.tables and kind != "sync"]
    assert len({tuple(nbytes for nbytes, _ in table) for table in collectives}) == 1
    assert len(set(world.allgather(profile.to_json()))) == 1


def test_a_longer_measurement_times_this_librarys_allreduce_between_nodes(lone_comm, world):
    profile = lone_comm.tune(0.3)
    assert ("arrays" in profile.tables) == (world.size > 1)


def test_trials_end_on_all_ranks_alike(world):
    factors, g = sfb.Factors(np.ones((4, 60)), np.ones((4, 50))), np.empty((60, 50))
    with sfb.Comm(world, profile=Profile()) as comm:  # estimates by stated rates, which a trial checks
        assert (comm.plan(factors, g).trial is not None) == (world.size > 1)
        while (plan := comm.plan(factors, g)).trial is not None:
            comm.Allreduce(factors, g)
            np.testing.assert_array_equal(g, 4 * world.size)
        comm.Allreduce(factors, g)
        assert comm.last_exchange.algorithm == plan.algorithm
        assert (plan.algorithm in plan.measured) == (world.size > 1)
        assert len(set(world.allgather((plan.algorithm, str(plan.measured))))) == 1
