import pytest


@pytest.fixture(scope="session")
def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture(scope="module")
def comm(world):
    """A Comm over the real nodes, for all tests of a module."""
    import sfb

    with sfb.Comm(world) as comm:
        yield comm


@pytest.fixture(scope="module")
def lone_comm(world):
    """A Comm with one rank per node, for all tests of a module."""
    import sfb

    own = world.Split(world.rank)
    with sfb.Comm(world, node=own) as comm:
        own.Free()
        yield comm


@pytest.fixture(scope="module")
def gloo(world, tmp_path_factory):
    """The default process group of torch.distributed, over gloo, while the tests of a module run."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    path = world.bcast(tmp_path_factory.mktemp("gloo") / "store")
    dist.init_process_group("gloo", store=dist.FileStore(str(path), world.size), rank=world.rank, world_size=world.size)
    yield dist.group.WORLD
    world.Barrier()
    dist.destroy_process_group()


@pytest.fixture(params=["fused", "not fused"])
def fused(request):
    """Whether optimizers apply sums without forming them."""
    return request.param == "fused"


@pytest.fixture(params=["comm", "lone_comm"], ids=["one node", "nodes of one"])
def nodes(request):
    """A Comm over the real nodes, then over nodes of one rank."""
    return request.getfixturevalue(request.param)
