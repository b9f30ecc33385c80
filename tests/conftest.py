import os

import numpy as np
import pytest


def split_hosts(world, part):
    """A communicator of the ranks of this host whose rank on it has the same part(rank)."""
    from mpi4py import MPI

    host = world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)
    group = host.Split(part(host.rank), host.rank)
    host.Free()
    return group


@pytest.fixture
def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def comm(world):
    import sfb

    comm = sfb.Comm(world)
    yield comm
    comm.free()


@pytest.fixture(params=["one node", "nodes of two", "nodes of one"])
def any_comm(request, world):
    """A Comm over the real node, and ones that take every two ranks, or each, for a node of their own."""
    import sfb

    if request.param == "one node":
        comm = sfb.Comm(world)
    else:
        size = 2 if request.param == "nodes of two" else 1
        part = split_hosts(world, lambda slot: slot // size)
        comm = sfb.Comm(world, node=part)
        part.Free()
    yield comm
    comm.free()


@pytest.fixture
def lone_comm(world):
    """A Comm that takes every rank for a node of its own."""
    import sfb

    part = split_hosts(world, lambda slot: slot)
    comm = sfb.Comm(world, node=part)
    part.Free()
    yield comm
    comm.free()


@pytest.fixture
def rng(request):
    """Random numbers, the same on every rank; the seed is printed when a test fails."""
    seed = int(os.environ.get("SFB_TEST_SEED", 0))
    print(f"SFB_TEST_SEED={seed}")
    return np.random.default_rng([seed, *request.node.nodeid.encode()])
