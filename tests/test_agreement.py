import logging
from time import sleep

import numpy as np
import pytest

import sfb

pytestmark = pytest.mark.mpi


def test_a_rank_that_is_late_is_named(world, caplog):
    if world.size == 1:
        pytest.skip("needs ranks to wait for")
    with sfb.Comm(world, stall=0.2) as comm, caplog.at_level(logging.WARNING, "sfb"):
        factors, g = sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.empty((4, 3))
        comm.Allreduce(factors, g)
        together = comm.node.size == world.size
        assert not caplog.records
        if world.rank == 1:
            sleep(0.7)
        comm.Allreduce(factors, g)
    messages = [record.getMessage() for record in caplog.records]
    if world.rank == 1:
        assert not messages
    elif together:
        assert any("in Allreduce for rank 1" in message for message in messages)
        assert f"rank {world.rank} has waited" in messages[0]


def test_messages_of_the_user_arrive_while_ranks_wait(world):
    """A rank that waits for others lets MPI progress: one of them may wait for its message first."""
    if world.size == 1:
        pytest.skip("needs another rank")
    large = np.ones(1 << 20)
    factors, g = sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.empty((4, 3))
    with sfb.Comm(world) as comm:
        comm.Allreduce(factors, g)
        request = world.Isend(large, (world.rank + 1) % world.size) if world.rank == 0 else None
        if world.rank == 1:
            received = np.empty_like(large)
            world.Recv(received, 0)
        comm.Allreduce(factors, g)
        if request is not None:
            request.Wait()
    np.testing.assert_array_equal(g, 2 * world.size)
