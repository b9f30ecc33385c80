"""What trains over the backend "sfb" does so as over gloo."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

pytestmark = pytest.mark.mpi


def model():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30), torch.nn.Tanh(), torch.nn.Linear(30, 5)
    )


def batches(steps, rank):
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        yield torch.randn(8, 20, generator=generator), torch.randint(0, 5, (8,), generator=generator)


def train(net, optimizer, steps=5):
    for x, y in batches(steps, dist.get_rank()):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    "options", [{}, {"static_graph": True}, {"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-3}]
)
def test_ddp(gloo, options):
    ours, theirs = (
        DistributedDataParallel(model(), process_group=group, **options) for group in (dist.group.WORLD, gloo)
    )
    ours, theirs = (train(net, sgd(net)) for net in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
        first = a.clone()
        dist.broadcast(first, 0)
        assert torch.equal(a, first)


@pytest.mark.parametrize("hook", ["fp16_compress_hook", "allreduce_hook"])
def test_ddp_with_a_hook(default_group, hook):
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    plain, net = DistributedDataParallel(model()), DistributedDataParallel(model())
    net.register_comm_hook(None, getattr(default_hooks, hook))
    tolerance = 1e-6 if hook == "allreduce_hook" else 5e-2
    for a, b in zip(train(net, sgd(net)), train(plain, sgd(plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_ddp_with_powersgd(default_group):
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    net = DistributedDataParallel(model())
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    net.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    for parameter in train(net, sgd(net)):
        first = parameter.clone()
        dist.broadcast(first, 0)
        assert torch.equal(parameter, first)
        assert parameter.isfinite().all()


def test_uneven_inputs(default_group):
    net = DistributedDataParallel(model())
    optimizer = sgd(net)
    with net.join():
        train(net, optimizer, steps=2 + dist.get_rank() % 2)
    for parameter in net.parameters():
        first = parameter.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(parameter.detach(), first)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_zero_redundancy_optimizer(default_group):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    ours, theirs = DistributedDataParallel(model()), DistributedDataParallel(model())
    zero = ZeroRedundancyOptimizer(ours.parameters(), torch.optim.Adam, lr=0.01)
    for a, b in zip(train(ours, zero), train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.01)), strict=True):
        torch.testing.assert_close(a, b)
    zero.consolidate_state_dict(0)
    if dist.get_rank() == 0:
        assert len(zero.state_dict()["state"]) == len(list(ours.parameters()))


def test_sampler(default_group):
    sampler = torch.utils.data.DistributedSampler(range(10), shuffle=False)
    taken = [None] * dist.get_world_size()
    dist.all_gather_object(taken, list(sampler))
    assert {index for part in taken for index in part} == set(range(10))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_checkpoint(default_group, world, tmp_path):
    import torch.distributed.checkpoint as dcp

    path = world.bcast(str(tmp_path / "checkpoint"))
    net = model()
    optimizer = sgd(net)
    train(net, optimizer)
    dist.broadcast(net[0].weight.data, 0)
    saved = {"model": net.state_dict(), "mine": {f"rank {dist.get_rank()}": torch.full((3,), float(dist.get_rank()))}}
    dcp.save(saved, checkpoint_id=path)
    fresh = {"model": model().state_dict(), "mine": {f"rank {dist.get_rank()}": torch.zeros(3)}}
    dcp.load(fresh, checkpoint_id=path)
    assert torch.equal(fresh["model"]["0.weight"], net[0].weight)
    assert torch.equal(fresh["mine"][f"rank {dist.get_rank()}"], torch.full((3,), float(dist.get_rank())))
    dist.barrier()
