import pytest


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    """The default process group of torch.distributed, over gloo, while the tests of a module run."""
    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    world = MPI.COMM_WORLD
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
